"""Who a workload is: SPIFFE identities, the certificate authority and the live certificates of a proxy.

Reading order: ``openssl`` (what must be set before anything else is loaded), ``spiffe`` (the name), ``request`` and
``authority`` (how a certificate is made), ``directory`` and ``disk`` (a CA on disk), ``bundle`` (whom to trust),
``peer`` (by which rules a peer is accepted), ``context`` and ``alerts`` (TLS on either side, and what its failures
mean), ``issuers`` (where certificates come from), ``workload``, ``renewal``, ``trust`` and ``store`` (certificates
that stay valid while a proxy runs), ``memory`` (of processes that hold keys), ``wire``, ``access``, ``endpoint``,
``http_server`` and ``server`` (a CA over HTTPS), ``inspection`` and ``cli``. Nothing here imports ``ztun`` or
``waypoint``.
"""

from certs import openssl as openssl
