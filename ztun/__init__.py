"""The node proxy: carries the TCP traffic of the pods of one node over mutually authenticated HBONE tunnels.

Reading order: ``mesh`` (what is in the mesh, pure), ``resources`` and ``sources`` (where that comes from), ``hbone``
(the tunnel, pure), ``routing`` and ``traffic`` (what an engine decides, and what is done with the endpoints of one
destination, pure), ``net`` (sockets), ``dns`` (names for the pods), ``proxy`` (the node proxy), ``zds`` and ``agent``
(capture of pods in namespaces), ``telemetry``, ``lab`` (a mesh on one machine), ``cli``. Imports point from the later
of these to the earlier, and to ``certs``; never to ``waypoint``.
"""

import certs as certs  # before anything of ours imports cryptography: certs.openssl says why

__version__ = "0.1.0"
