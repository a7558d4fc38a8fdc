package tunnel

import (
	"cmp"
	"fmt"
	"strconv"

	"goipip/encap"
	"goipip/internal/packet"
	"goipip/internal/underlay"
)

// ClampMSS is the largest MSS in bytes that TCP SYNs through a tunnel may offer, one of the
// constants below, or MinClampMSS to MaxClampMSS.
type ClampMSS int

// The choices other than a number.
const (
	// ClampOff leaves SYNs alone.
	ClampOff ClampMSS = 0
	// ClampAuto is what fits the link and the path of outer packets as it is at present.
	ClampAuto ClampMSS = -1
)

// Limits of a ClampMSS that is a number, in bytes: what every host takes that does not offer
// another MSS (RFC 9293 §3.7.1), and what fits an IPv4 packet with all headers.
const (
	MinClampMSS = 536
	MaxClampMSS = MaxMTU - tcpIPHdrLen
)

// tcpIPHdrLen is the length of the headers that an MSS takes for granted, in bytes (RFC 9293
// §3.7.1).
const tcpIPHdrLen = packet.IPv4HdrLen + packet.TCPHdrLen

var errClampMSS = fmt.Errorf("must be off, auto, or %d (every host takes that) to %d (no packet holds more)", MinClampMSS, MaxClampMSS)

// String returns the word or the number for c that flags and keys have.
func (c ClampMSS) String() string {
	switch c {
	case ClampOff:
		return "off"
	case ClampAuto:
		return "auto"
	}
	return strconv.Itoa(int(c))
}

// ParseClampMSS reads what String returns. The error says what text must be.
func ParseClampMSS(text string) (ClampMSS, error) {
	switch text {
	case ClampOff.String():
		return ClampOff, nil
	case ClampAuto.String():
		return ClampAuto, nil
	}
	n, err := strconv.ParseInt(text, 0, 32)
	if err != nil || !ClampMSS(n).isNumber() {
		return ClampOff, errClampMSS
	}
	return ClampMSS(n), nil
}

// isNumber reports whether c is a number within the limits.
func (c ClampMSS) isNumber() bool { return c >= MinClampMSS && c <= MaxClampMSS }

// MarshalText returns String.
func (c ClampMSS) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// UnmarshalText reads what MarshalText returns.
func (c *ClampMSS) UnmarshalText(text []byte) (err error) {
	if *c, err = ParseClampMSS(string(text)); err != nil {
		return fmt.Errorf("clamp-mss %q: %w", text, err)
	}
	return nil
}

// maxMSS is the Plan's MaxMSS over a path.
func (w *way) maxMSS(p *underlay.Path) uint16 {
	if w.cfg.ClampMSS != ClampAuto {
		return uint16(w.cfg.ClampMSS)
	}
	mtu := cmp.Or(w.MTU(), MaxMTU) // the link may have none yet
	if p.MTU != 0 {
		mtu = min(mtu, p.MTU-encap.IPIP.HdrLen)
	}
	return uint16(max(mtu-tcpIPHdrLen, 1))
}
