"""OpenAI's video API: its official client works unmodified."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from fastapi.responses import FileResponse
from starlette.concurrency import run_in_threadpool

from pagedvid.service.errors import Conflict, NotFound
from pagedvid.service.http.create_body import documented_body, read_body
from pagedvid.service.http.pictures import sprite_sheet, thumbnail
from pagedvid.service.http.state import ERRORS, After, Limit, Order, Service, TheService, VideoId
from pagedvid.service.http.video_schemas import CreateVideo, DeletedVideo, RemixVideo, VideoList, VideoObject
from pagedvid.service.records import COMPLETED, NewFork, NewSession, Reference, SessionRecord

router = APIRouter(prefix="/v1/videos", tags=["videos"], responses=ERRORS)

POLL_HEADERS = {"openai-poll-after-ms": "500"}
"""How often OpenAI's client asks whether a video is done."""
_MEDIA: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The video or the picture.",
        "content": {kind: {"schema": {"type": "string", "format": "binary"}} for kind in ("video/mp4", "image/jpeg")},
    }
}


@router.post("", openapi_extra=documented_body(CreateVideo))
async def create_video(request: Request, service: TheService) -> VideoObject:
    """Accepts a video; it is made even if the service is restarted."""
    body, reference = await read_body(request, CreateVideo)
    return VideoObject.of(await run_in_threadpool(_create, service, body, reference), service.settings.model)


def _create(service: Service, body: CreateVideo, reference: Reference | None) -> SessionRecord:
    checks = service.checks
    checks.model(body.model)
    checks.size(body.size)
    checks.reference(reference)
    goes_on = reference is not None
    num_frames = checks.seconds(body.seconds, goes_on)
    prompt, later_prompts = checks.prompts(body.prompt, body.prompts, num_frames, goes_on)
    seed = checks.seed(body.seed)
    new = NewSession(prompt, num_frames, seed, later_prompts=later_prompts, reference=reference)
    return service.sessions.create(new)


@router.get("")
def list_videos(service: TheService, limit: Limit = 20, after: After = None, order: Order = "desc") -> VideoList:
    """Videos by time of creation; the next page is `after` the last of this one."""
    page = service.sessions.list(limit, after, newest_first=order == "desc", kind="video")
    data = [VideoObject.of(record, service.settings.model) for record in page.records]
    first, last = (data[0].id, data[-1].id) if data else (None, None)
    return VideoList(data=data, first_id=first, last_id=last, has_more=page.has_more)


@router.get("/{video_id}")
def get_video(video_id: VideoId, response: Response, service: TheService) -> VideoObject:
    """How a video stands."""
    response.headers.update(POLL_HEADERS)
    return VideoObject.of(service.sessions.get(video_id), service.settings.model)


@router.delete("/{video_id}")
def delete_video(video_id: VideoId, service: TheService) -> DeletedVideo:
    """Stops making a video if it is not done, and removes all of it."""
    service.sessions.delete(video_id)
    return DeletedVideo(id=video_id)


@router.get("/{video_id}/content", response_class=Response, responses=_MEDIA)
def get_content(
    video_id: VideoId, service: TheService, variant: Literal["video", "thumbnail", "spritesheet"] = "video"
) -> Response:
    """The finished video as mp4, or pictures of it as JPEG, as soon as there are frames to see."""
    if variant == "video":
        path = service.sessions.whole_file(video_id)
        try:
            facts = path.stat()
        except FileNotFoundError:
            raise NotFound(f"{video_id} was deleted just now") from None
        return FileResponse(path, media_type="video/mp4", filename=f"{video_id}.mp4", stat_result=facts)
    if not service.sessions.recording(video_id).chunks:
        raise Conflict(f"{video_id} has no frames yet; ask again when it has")
    draw = thumbnail if variant == "thumbnail" else sprite_sheet
    return Response(draw(service.sessions, video_id), media_type="image/jpeg")


@router.post("/{video_id}/remix")
def remix_video(video_id: VideoId, body: RemixVideo, service: TheService) -> VideoObject:
    """A video that shares the history of another one and goes on with another prompt.

    Without `seconds` it becomes as long as its source; if that is complete, twice as long.
    """
    source = service.sessions.get(video_id)
    num_frames = None if body.seconds is None else service.checks.seconds(body.seconds, source.goes_on)
    if num_frames is None:
        service.checks.num_frames((2 if source.state == COMPLETED else 1) * source.num_frames, "seconds")
    fork = NewFork(service.checks.prompt(body.prompt), num_frames=num_frames, kind="video")
    (record,) = service.sessions.fork(video_id, [fork])
    return VideoObject.of(record, service.settings.model)
