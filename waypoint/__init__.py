"""Layer-4 routing: waypoints, gateways and the engines that decide.

Reading order: ``resources`` (the documents), ``routes`` (documents compiled into ordered tables, pure), ``engines``
(what a block means in ambient and in sidecar mode), ``analysis`` (what is wrong with a configuration, and fixes),
``explain`` (one decision, rule by rule), then the servers and ``cli``. Imports ``ztun`` and ``certs``.
"""

import certs as certs  # before anything of ours imports cryptography: certs.openssl says why
