"""The tabs of the page, one module each. To add one: write its module, and name it here."""

from demo.tabs.about import AboutTab
from demo.tabs.base import Models, Page, Tab
from demo.tabs.edit import EditTab
from demo.tabs.evolve import EvolveTab
from demo.tabs.inpaint import InpaintTab
from demo.tabs.interpolate import InterpolateTab
from demo.tabs.names import NamesTab
from demo.tabs.reconstruct import ReconstructTab
from demo.tabs.sample import SampleTab

TABS: tuple[type[Tab], ...] = (
    SampleTab,
    ReconstructTab,
    InterpolateTab,
    EditTab,
    InpaintTab,
    EvolveTab,
    NamesTab,
    AboutTab,
)

__all__ = ["TABS", "Models", "Page", "Tab"]
