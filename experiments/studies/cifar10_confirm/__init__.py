"""Does ZNorm, GAN or centralization help on CIFAR-10? A study whose questions were fixed before its runs.

    python -m experiments reproduce cifar10_confirm --preset cpu

Expected: test accuracy of the baseline 0.81 (SGDM) and 0.82 (Adam) where tuned, 0.54 and 0.51 in the paper's regime.
On a CPU core, under Python 3.13 and JAX 0.12, the tuning took 720 core-minutes and a tuned run 24; 30 tuned runs and
the paper's regime were made on an NVIDIA H100, four at a time in 10 minutes altogether.

`experiments/results/cifar10_confirm/PROTOCOL.md` holds the contrasts, the endpoints and the analysis. In short:

- Tuned: every method with SGDM and Adam gets a grid of learning rates of the same length, on seeds that are not
  reported, by accuracy on training images that are held out; where the best rate is the last of its grid, the grid
  grows. The reported runs then train on all training images, with a warm-up and a rate that falls to 0.
- The paper's regime: constant learning rates, the same for every method, and many epochs on few images, so that
  the training loss runs towards 0 as it does in Yun, arXiv 2410.21564, Table 1.

Both on images that are not augmented, without weight decay, with all test images.
"""

from experiments.studies.cifar10_confirm.analysis import make_report, named_runs
from experiments.studies.cifar10_confirm.plan import SIZES as SIZES
from experiments.studies.cifar10_confirm.plan import make_runs
from experiments.studies.study import Study

STUDY = Study(
    name="cifar10_confirm",
    title="Does ZNorm, GAN or centralization help on CIFAR-10? Fixed before the runs (see its PROTOCOL.md)",
    runs=make_runs,
    report=make_report,
    named=named_runs,
)
