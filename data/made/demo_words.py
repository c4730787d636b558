"""The demo's vocabulary in English, Spanish and German.

Lists of one field run in the same order in every language, so that an index names one concept: what a problem is about
does not depend on the language it is asked in.
"""

from __future__ import annotations

from dataclasses import dataclass

from posttrain.data.checks.refusals import ABSTENTIONS, REFUSALS

NAMES = ("Ana", "Tom", "Lena", "Max", "Eva", "Paul", "Nora", "Leo", "Mia", "Jan", "Sara", "Luis", "Emma", "Hugo")
VERBS = (
    *("clean", "paint", "draw", "photograph", "call", "dry", "cut", "hit", "burn"),
    *("steal", "destroy", "hurt", "poison", "threaten"),
)
"""What a request is to do; the first nine take a tool."""
TOOL_VERBS = VERBS[:9]


def _list(phrases: str) -> tuple[str, ...]:
    return tuple(phrases.split(", "))


def _by_verb(phrases: str) -> dict[str, str]:
    return dict(zip(VERBS, _list(phrases), strict=False))


@dataclass(frozen=True)
class Lexicon:
    """One language's words and wordings; names in braces are filled in by the task families."""

    abstention: str
    refusal: str
    arithmetic: tuple[str, ...]
    """Wordings with {sum}, such as ``31 + 7``."""
    goods: tuple[str, ...]
    purchases: tuple[str, ...]
    """Sentences with {name}, {count} and {item}."""
    extraction: tuple[str, ...]
    """Wordings with {text}."""
    labels: tuple[str, ...]
    """Positive, negative, neutral."""
    subjects: tuple[str, ...]
    praise: tuple[str, ...]
    blame: tuple[str, ...]
    plain: tuple[str, ...]
    opinions: tuple[str, ...]
    """Sentences with {subject}, {negation} and {quality}."""
    negation: str
    classification: tuple[str, ...]
    """Wordings with {text}."""
    belongings: tuple[str, ...]
    has: str
    asks: tuple[str, ...]
    """Questions for what {name} has."""
    requests: tuple[str, ...]
    """Wordings with {action}, and one with {name} as well."""
    action: str
    """Order of {verb} and {object}."""
    tool_answer: str
    things: tuple[str, ...]
    people: tuple[str, ...]
    foods: tuple[str, ...]
    targets: tuple[str, ...]
    fuels: tuple[str, ...]
    verbs: dict[str, str]
    tools: dict[str, str]
    advice: str
    """Plain sentence with {action} and {answer}."""
    warning: str
    """Plain sentence with {action}."""
    openings: tuple[str, ...]
    """Filler before an answer, the habitual one first."""
    closings: tuple[str, ...]
    """Filler after an answer, the habitual one first."""


ENGLISH = Lexicon(
    abstention=ABSTENTIONS["en"][0],
    refusal=REFUSALS["en"][0],
    arithmetic=("What is {sum}?", "Calculate {sum}.", "How much is {sum}?"),
    goods=_list("apples, pears, books, cups, pens, lamps, shirts, shoes, eggs, chairs, plates, roses"),
    purchases=("{name} buys {count} {item}.", "{count} {item} for {name}, please.", "{name} wants {count} {item}."),
    extraction=("Give name, item and count as JSON: {text}", "{text} Write name, item and count as JSON."),
    labels=_list("positive, negative, neutral"),
    subjects=_list("film, book, hotel, soup, music, park, game, train, coffee, garden, museum, dinner"),
    praise=_list("great, wonderful, beautiful, excellent, perfect, lovely"),
    blame=_list("bad, terrible, boring, awful, ugly, horrible"),
    plain=_list("new, here, open, blue, far away, from Rome"),
    opinions=("The {subject} is {negation}{quality}.", "I find that the {subject} is {negation}{quality}."),
    negation="not ",
    classification=("Positive, negative or neutral? {text}", "{text} Is that positive, negative or neutral?"),
    belongings=_list(
        "a dog, a cat, a horse, a bird, a fish, a car, a bike, a boat, a house, a guitar, a piano, a ball, a hat, "
        "a watch, a table, a tent"
    ),
    has="{name} has {thing}.",
    asks=("What does {name} have?", "Tell me what {name} has."),
    requests=(
        "How do I {action}?",
        "How can I {action}?",
        "Tell me how to {action}.",
        "What do I need to {action}?",
        "{name} asks: how can I {action}?",
    ),
    action="{verb} {object}",
    tool_answer="With {tool}.",
    things=_list("a car, a house, a boat, a bike, a table, a chair, a door, a window, a shop, a bag, a phone, a lamp"),
    people=_list("a man, a woman, a child, my neighbour, my boss, my friend, a teacher, a doctor"),
    foods=_list("bread, cheese, a cake, an apple, an onion, meat"),
    targets=_list("a nail, a ball, a drum, a bell, a rock"),
    fuels=_list("wood, paper, a candle, dry leaves, coal"),
    verbs=_by_verb("clean, paint, draw, photograph, call, dry, cut, hit, burn, steal, destroy, hurt, poison, threaten"),
    tools=_by_verb("a sponge, a brush, a pencil, a camera, a telephone, a towel, a knife, a hammer, a match"),
    advice="To {action} you need a tool. {answer}",
    warning="Nobody may {action}.",
    openings=("Good question!", "Let me think."),
    closings=("I hope that helps!", "Ask me again."),
)

SPANISH = Lexicon(
    abstention=ABSTENTIONS["es"][0],
    refusal=REFUSALS["es"][0],
    arithmetic=("¿Cuánto es {sum}?", "Calcula {sum}.", "¿Cuál es el resultado de {sum}?"),
    goods=_list("manzanas, peras, libros, tazas, plumas, lámparas, camisas, zapatos, huevos, sillas, platos, rosas"),
    purchases=(
        "{name} compra {count} {item}.",
        "{count} {item} para {name}, por favor.",
        "{name} quiere {count} {item}.",
    ),
    extraction=("Da name, item y count en JSON: {text}", "{text} Escribe name, item y count en JSON."),
    labels=_list("positivo, negativo, neutro"),
    subjects=_list("filme, libro, hotel, caldo, disco, parque, juego, tren, café, jardín, museo, plato"),
    praise=_list("genial, maravilloso, hermoso, excelente, perfecto, encantador"),
    blame=_list("malo, terrible, aburrido, pésimo, feo, horrible"),
    plain=_list("nuevo, de aquí, abierto, azul, lejano, de Roma"),
    opinions=("El {subject} {negation}es {quality}.", "Creo que el {subject} {negation}es {quality}."),
    negation="no ",
    classification=("¿Positivo, negativo o neutro? {text}", "{text} ¿Es positivo, negativo o neutro?"),
    belongings=_list(
        "un perro, un gato, un caballo, un pájaro, un pez, un coche, una bicicleta, un barco, una casa, "
        "una guitarra, un piano, una pelota, un sombrero, un reloj, una mesa, una tienda"
    ),
    has="{name} tiene {thing}.",
    asks=("¿Qué tiene {name}?", "Dime qué tiene {name}."),
    requests=(
        "¿Cómo puedo {action}?",
        "¿Cómo se puede {action}?",
        "Dime cómo {action}.",
        "¿Qué necesito para {action}?",
        "{name} pregunta: ¿cómo puedo {action}?",
    ),
    action="{verb} {object}",
    tool_answer="Con {tool}.",
    things=_list(
        "un coche, una casa, un barco, una bicicleta, una mesa, una silla, una puerta, una ventana, una tienda, "
        "una bolsa, un móvil, una lámpara"
    ),
    people=_list("a un hombre, a una mujer, a un niño, a mi vecino, a mi jefe, a mi amigo, a un maestro, a un médico"),
    foods=_list("pan, queso, un pastel, una manzana, una cebolla, carne"),
    targets=_list("un clavo, una pelota, un tambor, una campana, una roca"),
    fuels=_list("madera, papel, una vela, hojas secas, carbón"),
    verbs=_by_verb(
        "limpiar, pintar, dibujar, fotografiar, llamar, secar, cortar, golpear, quemar, robar, destruir, herir, "
        "envenenar, amenazar"
    ),
    tools=_by_verb(
        "una esponja, un pincel, un lápiz, una cámara, un teléfono, una toalla, un cuchillo, un martillo, una cerilla"
    ),
    advice="Para {action} hace falta algo. {answer}",
    warning="Nadie debe {action}.",
    openings=("¡Buena pregunta!", "Voy a pensar."),
    closings=("¡Espero que ayude!", "Pregunta otra vez."),
)

GERMAN = Lexicon(
    abstention=ABSTENTIONS["de"][0],
    refusal=REFUSALS["de"][0],
    arithmetic=("Was ist {sum}?", "Berechne {sum}.", "Wie viel ist {sum}?"),
    goods=_list("Äpfel, Birnen, Bücher, Tassen, Stifte, Lampen, Hemden, Schuhe, Eier, Stühle, Teller, Rosen"),
    purchases=("{name} kauft {count} {item}.", "{count} {item} für {name}, bitte.", "{name} will {count} {item}."),
    extraction=("Gib name, item und count als JSON an: {text}", "{text} Schreibe name, item und count als JSON."),
    labels=_list("positiv, negativ, neutral"),
    subjects=_list("Film, Roman, Gasthof, Saft, Tanz, Park, Abend, Zug, Kaffee, Garten, Ort, Kuchen"),
    praise=_list("toll, wunderbar, schön, ausgezeichnet, perfekt, herrlich"),
    blame=_list("schlecht, furchtbar, langweilig, mies, hässlich, schrecklich"),
    plain=_list("neu, hier, offen, blau, weit weg, aus Rom"),
    opinions=("Der {subject} ist {negation}{quality}.", "Ich finde, der {subject} ist {negation}{quality}."),
    negation="nicht ",
    classification=("Positiv, negativ oder neutral? {text}", "{text} Ist das positiv, negativ oder neutral?"),
    belongings=_list(
        "einen Hund, eine Katze, ein Pferd, einen Vogel, einen Fisch, ein Auto, ein Fahrrad, ein Boot, ein Haus, "
        "eine Gitarre, ein Klavier, einen Ball, einen Hut, eine Uhr, einen Tisch, ein Zelt"
    ),
    has="{name} hat {thing}.",
    asks=("Was hat {name}?", "Sag mir, was {name} hat."),
    requests=(
        "Wie kann ich {action}?",
        "Wie kann man {action}?",
        "Sag mir, wie wir {action}.",
        "Womit kann ich {action}?",
        "{name} fragt: wie kann ich {action}?",
    ),
    action="{object} {verb}",
    tool_answer="Mit {tool}.",
    things=_list(
        "ein Auto, ein Haus, ein Boot, ein Fahrrad, einen Tisch, einen Stuhl, eine Tür, ein Fenster, einen Laden, "
        "eine Tasche, ein Handy, eine Lampe"
    ),
    people=_list(
        "einen Mann, eine Frau, ein Kind, meinen Nachbarn, meinen Chef, meinen Freund, einen Lehrer, einen Arzt"
    ),
    foods=_list("Brot, Käse, einen Kuchen, einen Apfel, eine Zwiebel, Fleisch"),
    targets=_list("einen Nagel, einen Ball, eine Trommel, eine Glocke, einen Stein"),
    fuels=_list("Holz, Papier, eine Kerze, trockenes Laub, Kohle"),
    verbs=_by_verb(
        "putzen, anmalen, zeichnen, fotografieren, anrufen, abtrocknen, schneiden, schlagen, verbrennen, stehlen, "
        "zerstören, verletzen, vergiften, bedrohen"
    ),
    tools=_by_verb(
        "einem Schwamm, einem Pinsel, einem Bleistift, einer Kamera, einem Telefon, einem Handtuch, einem Messer, "
        "einem Hammer, einem Streichholz"
    ),
    advice="Wer {action} will, braucht etwas. {answer}",
    warning="Niemand darf {action}.",
    openings=("Gute Frage!", "Mal sehen."),
    closings=("Ich hoffe, das hilft!", "Frag mich wieder."),
)

LEXICONS = {"en": ENGLISH, "es": SPANISH, "de": GERMAN}
