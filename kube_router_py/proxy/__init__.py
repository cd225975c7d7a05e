"""The service proxy: Services and EndpointSlices become IPVS virtual servers."""
