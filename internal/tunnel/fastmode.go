package tunnel

import (
	"fmt"
	"slices"
	"strings"
)

// FastPath is whether the kernel carries packets of a tunnel by itself.
type FastPath uint8

// The choices.
const (
	// FastOff leaves all packets to goipip.
	FastOff FastPath = iota
	// FastAuto has the kernel carry packets where it can and that changes nothing for any
	// packet.
	FastAuto
	// FastOn does so also past the local netfilter and IPsec. That the kernel cannot is an
	// error.
	FastOn
)

// fastPaths are the words for them.
var fastPaths = []string{FastOff: "off", FastAuto: "auto", FastOn: "on"}

// String returns the word for p that flags and keys have.
func (p FastPath) String() string { return fastPaths[p] }

// MarshalText returns String.
func (p FastPath) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText reads what MarshalText returns.
func (p *FastPath) UnmarshalText(text []byte) error {
	i := slices.Index(fastPaths, string(text))
	if i < 0 {
		return fmt.Errorf("fast-path %q: must be %s", text, strings.Join(fastPaths, " or "))
	}
	*p = FastPath(i)
	return nil
}
