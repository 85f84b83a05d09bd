"""Compiling the usual kernels before they are needed."""

from __future__ import annotations

from fastsparse.runtime import kernel_cache, threading_layer


def warmup(*, progress: bool = True) -> None:
    """Compile the usual kernels, or load them from the cache, so that later calls do not wait for it.

    Takes up to a minute or two with an empty cache, a second with a full one.

    Parameters
    ----------
    progress : bool
        Show a progress bar on stderr.
    """
    from tqdm import tqdm

    from fastsparse_kernels import compiler, registry

    compiler.set_cache_directory(kernel_cache.cache_directory, kernel_cache.write_cached)
    parallel = threading_layer.parallel_allowed()  # loading the parallel launch needs Numba's threads
    usual = [(name, prepare) for name, prepare in registry.usual() if parallel or prepare not in registry.PARALLEL]
    with tqdm(usual, desc="kernels", unit="kernel", disable=not progress) as bar:
        for name, prepare in bar:
            bar.set_postfix_str(name)
            prepare()
