"""Features made elsewhere -> an embedding store.

Enters: embeddings of any encoder and any width. Leaves: a store that the whole rest of the path takes, with no video
at hand.

What is accepted, each array being (segments, width), one segment after the other without gaps; axes of length 1 beside these two
are dropped, and with `transpose` the two are exchanged:

- a folder of `.npy`, `.npz`, `.safetensors`, `.pt`/`.pth` or `.csv`: one file a video, its id the path without the suffix. A
  file of several arrays needs exactly one of two dimensions, or `key`, its name. Nothing that could execute code is loaded.
- one such file: a video, or, where it holds several arrays, a video each, by their names (with `key`, that one alone).
- a `.parquet` or `.csv` file with a row a video: a column `id` and a column of lists of lists (`embeddings`, or the only one);
  or of lists of files, one a segment, as the reference implementation has them.
- a `.parquet` or `.csv` file with a row a segment: a column `id`, a column `segment` (its number), and the vector: one column of
  lists, numeric columns in their order, or the `path` of a file. The rows of a video stand together.
- a `.npy` of all segments with the `.parquet` of their ids beside it, or a folder of these, as clip-retrieval writes them.
- a `.h5`/`.hdf5` file: a dataset a video, its id the dataset's path; with `key`, the dataset of that name in a group a video. Links
  are followed by name inside the folder.

Rows of zeros at the end are padding. What a file claims to hold is checked before memory is taken for it.
Cost: one video in memory at a time, plus the store's write buffer. What is in the store already is not read again.
"""

from lvmae.importing.job import ImportSummary, TurnedError, import_embeddings

__all__ = ["ImportSummary", "TurnedError", "import_embeddings"]
