"""Plain data -> one self-contained HTML page that opens from disk, with no network."""

from lvmae.report.page import Picture, ReportData, ScoreTable, VideoData, render

__all__ = ["Picture", "ReportData", "ScoreTable", "VideoData", "render"]
