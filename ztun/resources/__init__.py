"""Kubernetes and Istio documents, and what they mean for the mesh.

Reading order: ``yaml_text`` (text to plain data, safely, and back to positions), ``documents`` (files to
objects), then the kinds (``kubernetes``, ``istio``) and their ``translation`` into ``ztun.mesh``. Pydantic is
used here and nowhere further inside.
"""
