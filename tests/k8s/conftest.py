"""The manifests that the tests of this folder go through, one build after another."""

import pytest

from tests.manifests import BUILDS, OVERLAYS, Document, build


def names(build_: tuple[str, tuple[str, ...]]) -> str:
    """An overlay and its components, as tests are called by them."""
    return "+".join([build_[0], *build_[1]])


@pytest.fixture(params=BUILDS, ids=names)
def documents(request: pytest.FixtureRequest) -> tuple[Document, ...]:
    """All documents of a build."""
    return build(*request.param)


@pytest.fixture(params=OVERLAYS)
def overlay(request: pytest.FixtureRequest) -> str:
    """The name of an overlay."""
    return str(request.param)
