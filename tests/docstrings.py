"""Runs the examples in the docstrings of the public API, as installed: python tests/docstrings.py"""

import doctest
import inspect
import sys

import nextgpt_jax


def main() -> int:
    finder, runner = (
        doctest.DocTestFinder(recurse=True),
        doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE),
    )
    lacking = []
    for name in nextgpt_jax.__all__:
        value = getattr(nextgpt_jax, name)
        if not (inspect.isclass(value) or inspect.isfunction(value)):
            continue
        if not value.__doc__:
            lacking.append(name)
        for test in finder.find(value, name, globs={}):
            runner.run(test)
    result = runner.summarize()
    print(f"{result.attempted} examples in docstrings, {result.failed} failed")
    if lacking:
        print(f"without a docstring: {', '.join(lacking)}")
    return int(bool(result.failed or lacking or not result.attempted))


if __name__ == "__main__":
    sys.exit(main())
