"""Stands in for the package where a clone that is named `syvla` is imported from the folder that holds it.

`import syvla` beside such a clone finds the clone's folder and not the package inside of it; without this file Python would
take it for a package without code, and say nothing.
"""

if __name__ == "syvla":
    import sys
    from importlib.util import module_from_spec, spec_from_file_location
    from pathlib import Path

    _spec = spec_from_file_location("syvla", Path(__file__).with_name("syvla") / "__init__.py")
    assert _spec is not None
    assert _spec.loader is not None
    sys.modules["syvla"] = module_from_spec(_spec)  # what the import statement returns
    _spec.loader.exec_module(sys.modules["syvla"])
