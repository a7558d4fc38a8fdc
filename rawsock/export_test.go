package rawsock

// For tests of what has no other way out than through the kernel.
var (
	RefusalOf   = refusalOf
	ShareFilter = shareFilter
)
