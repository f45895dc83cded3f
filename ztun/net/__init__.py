"""Sockets: everything between the kernel and the pure rooms.

Reading order: ``buffers`` (one read buffer for the whole loop), ``poller`` (who can read or write), ``stream_socket``
(a connection), ``tls`` (the seam to OpenSSL), ``app_socket`` (an application's connection) with ``peek`` and
``tls_socket`` (TLS that ends here), ``dial`` and ``listeners`` (making sockets), ``tunnel`` (an outgoing tunnel),
``opening`` (a request until it is answered), ``pool`` (which tunnel to use), ``inbound`` (an accepted tunnel),
``relay`` (joining two ends), ``original_destination``, ``namespaces`` (of pods), ``socks5``.
"""
