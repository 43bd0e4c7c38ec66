"""Random weights of Inception, made once."""

import pytest
from inception import inception_file


@pytest.fixture(scope="session")
def inception_weights(tmp_path_factory):
    """The path of a file of Inception's weights, which are random."""
    return inception_file(tmp_path_factory.mktemp("inception"))
