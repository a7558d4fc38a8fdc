package tunnel

type FastPath uint8

const (
	FastOff FastPath = iota
	FastAuto
	FastOn
)
