"""Kubernetes and Istio documents, and what they mean for the mesh.

Reading order: ``problems`` (a place in a file and what is wrong there), ``yaml_text`` (text to plain data,
safely), ``documents`` (files to objects with positions), then the kinds (``kubernetes``, ``istio``) and their
``translation`` into ``ztun.mesh``. Pydantic is used here and nowhere further inside.
"""
