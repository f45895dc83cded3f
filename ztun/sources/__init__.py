"""Where the mesh's state comes from: ``files`` watches configuration files and gives a snapshot for each change."""
