"""Studies by name: one module or package per paper table, each with a `STUDY`."""

from collections.abc import Mapping

from experiments.studies.study import Study


def load_studies() -> Mapping[str, Study]:
    """All studies, by name."""
    from experiments.studies import (
        beyond_batchnorm,
        cifar10_confirm,
        gan_cifar100,
        gradient_dynamics,
        gradient_overlap,
        large_batch,
        lgg_unet,
        overlap_table1,
        pcam,
        vit_dynamics,
        znorm_architectures,
    )

    modules = (
        cifar10_confirm,
        overlap_table1,
        gan_cifar100,
        znorm_architectures,
        large_batch,
        gradient_dynamics,
        gradient_overlap,
        beyond_batchnorm,
        pcam,
        lgg_unet,
        vit_dynamics,
    )
    return {module.STUDY.name: module.STUDY for module in modules}
