import pytest

from tests.support.image_files import write_cifar10


@pytest.fixture(scope="session")
def cifar10(tmp_path_factory):
    """A folder with the files of 64 images to train on and 32 to test on."""
    folder = tmp_path_factory.mktemp("cifar10")
    write_cifar10(folder, 64)
    return folder
