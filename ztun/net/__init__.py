"""Sockets: everything between the kernel and the pure rooms.

Reading order: ``buffers`` (one read buffer for the whole loop), ``poller`` (who can read or write), ``stream_socket``
(a connection), ``tls`` (the seam to OpenSSL), ``app_socket`` (an application's connection) with ``peek`` and
``tls_socket`` (TLS that ends here), ``dial`` and ``listeners`` (making sockets), ``session`` (what both ends of a
tunnel share), ``tunnel`` (an outgoing one), ``opening`` (a request until it is answered), ``pool`` (which tunnel to
use), ``inbound`` (an accepted one), ``relay`` (joining two ends), ``original_destination``, ``namespaces`` (of pods),
``socks5``.
"""
