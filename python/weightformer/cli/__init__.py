"""The command line: teachers, fit, predict, finetune, evaluate, compare, demo, plan."""

from __future__ import annotations

import sys
from typing import Any

import typer

from weightformer.cli import compare, evaluate, finetune, fit, plan, predict, teachers
from weightformer.cli.options import UserError

app = typer.Typer(
    name="weightformer",
    help="Turn an ensemble of trained networks into one network by predicting its weights.\n\n"
    "Begin with `weightformer demo`: the whole way on real data in a few minutes. With networks of your own: `fit` a"
    " WeightFormer on them, `predict` a student for others, `evaluate` it.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)
app.command()(compare.demo)
app.command()(compare.compare)
app.command()(teachers.teachers)
app.command()(fit.fit)
app.command()(predict.predict)
app.command()(finetune.finetune)
app.command()(evaluate.evaluate)
app.command()(plan.plan)

# click's UsageError; typer may bring a copy of click that has no public name.
_UsageError: Any = typer.BadParameter.__mro__[1]


def main() -> None:
    """Run the command line; whatever the user can put right ends in one line and exit code 2."""
    try:
        sys.exit(app(prog_name="weightformer", standalone_mode=False))
    except _UsageError as error:
        command = getattr(error, "ctx", None)
        path = "weightformer" if command is None else command.command_path
        if type(error).__name__ == "NoArgsIsHelpError":
            print(error)
            sys.exit(2)
        _stop(f"{error.format_message().rstrip('.')}. See `{path} --help`.")
    except (UserError, ValueError) as error:
        _stop(str(error))
    except FloatingPointError as error:  # weightformer.fit.Diverged
        _stop(str(error), code=1)
    except (KeyboardInterrupt, typer.Abort):
        print(
            "weightformer: interrupted; a run with --output goes on with the same command and --resume", file=sys.stderr
        )
        sys.exit(130)
    except (MemoryError, OverflowError, RuntimeError) as error:
        if not _too_much(error):
            raise
        from weightformer.checkpoints.error import one_line

        _stop(
            f"this takes more memory than there is here, or a number too large to count with ({one_line(error)}); make"
            " what was asked for smaller, such as views, batch_size, images, networks or the model"
        )
    except OSError as error:
        _stop(f"{error.filename or 'a file'}: {error.strerror or error}; see to it and run the command again")


def _too_much(error: Exception) -> bool:
    """Return whether memory, or the range of sizes, was not enough; torch has no class of its own for either."""
    words = ("can't allocate", "cannot allocate", "bad_alloc", "out of memory", "not enough memory", "overflow")
    return not isinstance(error, RuntimeError) or any(word in str(error).lower() for word in words)


def _stop(message: str, code: int = 2) -> None:
    print(f"weightformer: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
