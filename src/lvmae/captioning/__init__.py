"""A caption for each segment of a store, written by a vision LLM behind an OpenAI-compatible endpoint (paper, section 7).

Enters: a store whose videos are still at their `source`, and the address of an endpoint: a vLLM or Ollama on this machine, or a
hosted one. Leaves: a CSV with the columns video, start, end, text, as `lvmae.library.captions` reads it. Price: one request a
segment, with `frames` pictures; a few segments' JPEGs in memory. Each answer is written to the file before the next
request, so a run can be resumed after any stop, and no segment is paid for twice.

The key comes from the environment (LVMAE_API_KEY, or else OPENAI_API_KEY) and is written nowhere.
"""

from lvmae.captioning.endpoint import PROMPT
from lvmae.captioning.job import CaptionFailure, CaptionJob, CaptionSummary, Estimate

__all__ = ["PROMPT", "CaptionFailure", "CaptionJob", "CaptionSummary", "Estimate"]
