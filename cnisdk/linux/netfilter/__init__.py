"""The packet filter: nftables and iptables."""
