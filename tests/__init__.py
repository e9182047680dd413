import pathlib
from importlib import metadata

ROOT = pathlib.Path(__file__).parents[1]
FIXTURES = ROOT / "tests" / "fixtures"
KEYPAD = ROOT / "configs" / "keypad.py"

# The tests compile more than they compute.
QUICK_COMPILER = "--xla_backend_optimization_level=0"
if metadata.version("jaxlib").startswith("0.10."):  # later ones end the process at the flag
    QUICK_COMPILER += " --xla_cpu_use_fusion_emitters=false"
