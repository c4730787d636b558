"""The command `posttrain serve`."""

from __future__ import annotations

import argparse
import os

from posttrain.pipeline.commands.parsers.shared import Commands, add_examples, add_root

EXAMPLES = """examples:
  posttrain serve dpo                                  transformers serve, on the model of stage dpo
  posttrain serve my-run/dpo --vllm ~/vllm/bin/python  vLLM, in an environment of its own
  posttrain serve my-model --port 9000 --dry-run       what would run, for a folder that was exported

--vllm is $VLLM_PYTHON by default; without either it is transformers serve (pip install 'posttrain[serve]')."""


def register(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add the command to those of the command line."""
    serve = commands.add_parser("serve", help="start an existing server, vLLM or transformers serve, on a model")
    add_examples(serve, EXAMPLES)
    add_root(serve)
    serve.add_argument("artifact", metavar="ARTIFACT", help="a model: RUN/STAGE, a stage, or a folder")
    serve.add_argument("--vllm", metavar="PYTHON", help="interpreter of an environment that has vLLM")
    serve.add_argument("--host", default="localhost", metavar="NAME", help="where to listen; localhost by default")
    serve.add_argument("--port", type=int, default=8000, metavar="N", help="8000 by default")
    serve.add_argument("--name", metavar="TEXT", help="what requests call the model (vLLM); its stage by default")
    serve.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="that of the weights by default")
    serve.add_argument("--dry-run", action="store_true", help="print the command line and start nothing")
    serve.set_defaults(action=_serve)


def _serve(options: argparse.Namespace) -> int:
    from posttrain.pipeline.commands.serve import VLLM, Serving, serve

    serving = Serving(
        options.host, options.port, options.name, options.dtype, options.vllm or os.environ.get(VLLM) or None
    )
    return serve(options.root, options.artifact, serving, options.dry_run)
