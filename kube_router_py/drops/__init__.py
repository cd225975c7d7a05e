"""What the firewall refuses, packet by packet: read from the kernel's log, named, and told."""
