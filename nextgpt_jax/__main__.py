"""python -m nextgpt_jax SUBCOMMAND ...: as the command `nextgpt`."""

from nextgpt_jax.cli.main import run

if __name__ == "__main__":
    run()
