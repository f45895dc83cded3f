"""Kubernetes and Istio documents, and what they mean for the mesh.

Reading order: ``chunks`` (a file to its documents), ``yaml_text`` (text to plain data, safely, and back to positions),
``documents`` (files to objects), the kinds (``schema``, ``kubernetes``, ``entries``, ``security``), what they become
(``workloads``, ``services``, ``service_entries``, ``auto_allocation``, ``waypoints``, ``policies``,
``peer_authentication``) and the whole (``translation``). Pydantic is used here and nowhere further inside.
"""
