import pytest
import torch

from tests.support.image_files import write_cifar10


@pytest.fixture(scope="session")
def cifar10(tmp_path_factory):
    """A folder with the files of 64 images to train on and 32 to test on."""
    folder = tmp_path_factory.mktemp("cifar10")
    write_cifar10(folder, 64)
    return folder


@pytest.fixture(autouse=True, scope="package")
def one_thread():
    """In networks so narrow, a second thread costs more than it saves."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
