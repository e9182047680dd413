"""The server as a Ray Serve deployment: python -m examples.serve_ray --config=CONFIG --replicas=N [--port=8000]

Needs `pip install 'nextgpt-jax[serve]' 'ray[serve]'`. `ray_actor_options={"num_gpus": 1}` gives each replica a GPU.
"""

import argparse
import time
from typing import Any

from ray import serve


def deployment(config_name: str, replicas: int) -> Any:
    """What `serve.run` deploys: the app of `nextgpt serve` in each replica."""

    def build_app() -> Any:  # in a replica
        from nextgpt_jax.cli.infer import load_engine
        from nextgpt_jax.config_files import load_config
        from nextgpt_jax.serving.batcher import Batcher
        from nextgpt_jax.serving.http.app import make_app
        from nextgpt_jax.serving.http.settings import Settings

        config = load_config(config_name)
        batcher = Batcher(load_engine(config, ""), config.serving)
        return make_app(batcher, Settings(name=config_name), encoder=config.model.encoder)

    build = serve.deployment(num_replicas=replicas, max_ongoing_requests=256)
    return build(serve.ingress(build_app)()).bind()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", required=True)
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--port", type=int, default=8000)
    flags = parser.parse_args()
    serve.start(http_options={"host": "127.0.0.1", "port": flags.port})
    serve.run(deployment(flags.config, flags.replicas), name="nextgpt")
    print("ready", flush=True)
    while True:
        time.sleep(60)
