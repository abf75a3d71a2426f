"""Films of the frozen policy and the steered one side by side, on the same episodes and the same noise."""

from lpds.video.write import Film, write_video

__all__ = ["Film", "write_video"]
