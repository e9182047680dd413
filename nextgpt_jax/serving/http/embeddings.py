"""POST /v1/embeddings."""

import base64

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from nextgpt_jax import media
from nextgpt_jax.inference.validation import check_readable
from nextgpt_jax.prompts import Input
from nextgpt_jax.serving.http.bodies import read_json
from nextgpt_jax.serving.http.conversations import check_part
from nextgpt_jax.serving.http.documents import body_of
from nextgpt_jax.serving.http.embedder import Embedder
from nextgpt_jax.serving.http.errors import ApiError
from nextgpt_jax.serving.http.schemas import Embeddings
from nextgpt_jax.serving.http.services import Services, of

router = APIRouter()


@router.post("/embeddings", openapi_extra=body_of(Embeddings))
async def embeddings(request: Request) -> JSONResponse:
    """Embeddings of texts and media in one space, of unit length; media are given as parts of a message."""
    services, embedder = of(request), request.app.state.embedder
    body = await read_json(request, Embeddings, services.pool)
    services.check_model(body.model)
    return JSONResponse(await services.run(_embed, services, embedder, body, request))


def _embed(services: Services, embedder: Embedder, body: Embeddings, request: Request) -> dict[str, object]:
    given = body.input if isinstance(body.input, list) else [body.input]
    tokens = embedder.check(given)
    width = services.engine.config.embedding_dims
    if body.dimensions is not None and body.dimensions not in width.values():
        message = f"dimensions is {body.dimensions}: this model has {', '.join(map(str, width.values()))}"
        raise ApiError(message, param="dimensions", code="invalid_value")
    inputs: list[str | Input] = []
    with services.inputs(request) as files, files.named():
        for i, item in enumerate(given):
            if not isinstance(item, str):
                check_part(item, f"input[{i}]")
                if item.type == "text":
                    raise ApiError(f"input[{i}]: give a text as a string", param=f"input[{i}]", code="invalid_value")
                modality, path = files.read(item, f"input[{i}]")
                check_readable(modality, services.engine.config)
                item = Input(modality, media.load(modality, path, services.engine.config.input_encoders[modality]))
                tokens += services.engine.config.num_embeddings[modality]
            inputs.append(item)
    rows = embedder.embed(inputs)
    packed = body.encoding_format == "base64"
    data = [
        {
            "object": "embedding",
            "index": i,
            "embedding": base64.b64encode(row.astype("<f4").tobytes()).decode() if packed else row.tolist(),
        }
        for i, row in enumerate(rows)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": data, "model": services.settings.name, "usage": usage}
