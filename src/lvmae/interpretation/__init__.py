"""What a model understood, in words: hide segments, reconstruct them, read both back as the nearest texts (paper, section 7).

Enters: a run, a store of its space, and captions (or nothing: then the encoder's own vocabulary). Leaves: an `Interpretation`,
with numbers over the whole store beside two floors that any model has to beat, and with readings of its videos for the report
page. Price: one forward pass a window for the numbers; for the videos that are shown about 1 / ratio passes, so that each of
their segments is reconstructed once; one encoder pass a video for the nearest videos; a matrix product with all texts.

The numbers are computed on one mask a window, as in the paper. The segments it leaves visible are hidden in further masks of the
same size, chosen at random, so every reconstruction sees the same share of its video; these are shown, never scored.
A segment that has several captions counts as found where the best of them is.
"""

from lvmae.interpretation.result import Interpretation, interpret
from lvmae.interpretation.retrieval import complementary_masks
from lvmae.interpretation.texts import CaptionIndex

__all__ = ["CaptionIndex", "Interpretation", "complementary_masks", "interpret"]
