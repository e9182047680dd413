"""The files of converted folders."""

import json

from convert import folders


def test_the_index_of_a_pipeline_names_what_is_there(tmp_path):
    """Loaders would look for the rest, which a download leaves out."""
    index = {"_class_name": "StableDiffusionPipeline", "requires_safety_checker": True, "unet": ["diffusers", "UNet"]}
    optional = {"safety_checker": ["a", "Checker"], "feature_extractor": ["b", "Extractor"], "scheduler": ["c", "DDIM"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index | optional))
    (tmp_path / "scheduler").mkdir()
    found = folders.pipeline_index(tmp_path, ["unet"])["model_index.json"]
    nothing = [None, None]
    assert found == index | {**optional, "safety_checker": nothing, "feature_extractor": nothing}
