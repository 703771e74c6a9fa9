"""The demonstration: a corpus with a known storyline, and the whole path over it, by the commands a user would type."""

from lvmae.demo.corpus import Corpus, make_corpus
from lvmae.demo.walk import run_demo

__all__ = ["Corpus", "make_corpus", "run_demo"]
