package tunnel

import (
	"errors"
	"math"
	"net/netip"
	"slices"
	"strings"

	"goipip/tun"
)

// Validate checks what can be checked without asking the kernel. The error joins
// those of FieldErrors, with the names of fields as they are.
func (c Config) Validate() error {
	var errs []error
	for _, e := range c.FieldErrors() {
		errs = append(errs, e)
	}
	return errors.Join(errs...)
}

// FieldErrors returns what Validate finds, one error for each setting that is wrong.
func (c Config) FieldErrors() []*FieldError {
	all := []*FieldError{
		c.validateLocal(),
		c.validateRemote(),
		validateName(fieldName, c.Name),
		validateName(fieldDev, c.Device),
		c.validateAddress(),
		c.validatePeer(),
		c.validateAddressWithPeer(),
		c.validateMTU(),
		c.validateTTL(),
		c.validateQueues(),
		c.validateClampMSS(),
		c.validateResolveInterval(),
		c.validateKeepalive(),
		c.validateKeepaliveRetries(),
	}
	for i, a := range c.Addresses {
		all = append(all, address(fieldAddresses.at(i), a))
	}
	for i, r := range c.Routes {
		all = append(all, validateRoute(fieldRoutes.at(i), r)...)
	}
	return slices.DeleteFunc(all, func(e *FieldError) bool { return e == nil })
}

func (c Config) validateLocal() *FieldError {
	switch {
	case c.LocalDevice != "" && !IsDeviceName(c.LocalDevice):
		return fieldLocal.errorf("%v %q: not a device that can stand for its address", fieldLocal, c.LocalDevice)
	case c.AnyLocal():
		return nil
	case c.Local == netip.IPv4Unspecified():
		return fieldLocal.errorf("%v %v: leave it out for any local address", fieldLocal, c.Local)
	}
	return end(fieldLocal, c.Local)
}

func (c Config) validateRemote() *FieldError {
	switch {
	case c.RemoteName != "" && !IsHostName(c.RemoteName):
		return fieldRemote.errorf("%v %q: not a host name", fieldRemote, c.RemoteName)
	case c.RemoteName != "" && !c.Remote.IsValid():
		return nil
	case !c.Remote.IsValid():
		return fieldRemote.errorf("%v is missing: give the IPv4 address of this tunnel's remote end", fieldRemote)
	}
	return end(fieldRemote, c.Remote)
}

// end checks one end of the tunnel.
func end(f field, a netip.Addr) *FieldError {
	switch {
	case !a.Is4():
		return f.errorf("%v %v: ipip runs over IPv4 only, and this is an IPv6 address", f, a)
	case a.IsUnspecified(), a.IsMulticast(), a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return f.errorf("%v %v: not the address of one host", f, a)
	}
	return nil
}

// validateName follows dev_valid_name in net/core/dev.c, and refuses % too, with
// which the kernel would number the name.
func validateName(f field, name string) *FieldError {
	switch {
	case len(name) > 15:
		return f.errorf("%v %q: %d bytes long, and a link's name has at most 15", f, name, len(name))
	case name == ".", name == "..", strings.ContainsAny(name, "/:% \t\n\v\f\r"):
		return f.errorf("%v %q: not a name that a link can have", f, name)
	}
	return nil
}

func (c Config) validateAddress() *FieldError {
	if c.Address == (netip.Prefix{}) {
		return nil
	}
	return address(fieldAddress, c.Address)
}

func (c Config) validatePeer() *FieldError {
	if !c.Peer.IsValid() {
		return nil
	}
	if err := innerHost(fieldPeer, c.Peer, c.Peer.String()); err != nil {
		return err
	}
	if !c.Address.IsValid() {
		return fieldPeer.errorf("%v %v needs %v, the inner address of this end", fieldPeer, c.Peer, fieldAddress)
	}
	return nil
}

func (c Config) validateAddressWithPeer() *FieldError {
	if bits := c.Address.Bits(); c.Peer.IsValid() && c.Address.Addr().Is4() && bits > 0 && bits != 32 {
		return fieldAddress.errorf("%v %v with %v: give the address without a prefix length", fieldAddress, c.Address, fieldPeer)
	}
	return nil
}

// address checks an inner address of this end.
func address(f field, a netip.Prefix) *FieldError {
	if err := innerHost(f, a.Addr(), a.String()); err != nil {
		return err
	}
	if a.Bits() < 1 {
		return f.errorf("%v %v: the kernel makes no route for a prefix length of 0: give 1 to 32", f, a)
	}
	return nil
}

// innerHost checks an address that inner packets come from; text shows it. Others' packets
// the other end drops (G2).
func innerHost(f field, a netip.Addr, text string) *FieldError {
	if !a.IsValid() {
		return f.errorf("%v: not an address", f)
	}
	if !a.Is4() {
		return f.errorf("%v %s: an ipip tunnel carries IPv4 only", f, text)
	}
	if first := a.As4()[0]; first == 0 || first == 127 || first >= 224 {
		return f.errorf("%v %s: the other end drops packets from there: give an address outside of 0/8, 127/8, 224/4 and 240/4", f, text)
	}
	return nil
}

func validateRoute(f field, r Route) (errs []*FieldError) {
	to, metric, table := f+".to", f+".metric", f+".table"
	switch {
	case !r.To.IsValid():
		errs = append(errs, to.errorf("%v: not a prefix: give the destination", to))
	case !r.To.Addr().Is4():
		errs = append(errs, to.errorf("%v %v: an ipip tunnel carries IPv4 only", to, r.To))
	case r.To != r.To.Masked():
		errs = append(errs, to.errorf("%v %v: has bits beyond the prefix length: write %v", to, r.To, r.To.Masked()))
	}
	if r.Metric < 0 || r.Metric > math.MaxInt32 {
		errs = append(errs, metric.errorf("%v %d: must be 0 to %d", metric, r.Metric, math.MaxInt32))
	}
	if r.Table < 0 || r.Table > math.MaxInt32 {
		errs = append(errs, table.errorf("%v %d: must be 0 to %d", table, r.Table, math.MaxInt32))
	}
	return errs
}

func (c Config) validateMTU() *FieldError {
	if c.MTU != 0 && (c.MTU < MinMTU || c.MTU > MaxMTU) {
		return fieldMTU.errorf("%v %d: must be %d to %d", fieldMTU, c.MTU, MinMTU, MaxMTU)
	}
	return nil
}

func (c Config) validateTTL() *FieldError {
	if c.TTL != 0 && c.NoPMTUDisc { // O3, as ip(8) says it
		return fieldNoPMTUDisc.errorf("ttl != 0 and nopmtudisc are incompatible: leave out %v or %v", fieldTTL, fieldNoPMTUDisc)
	}
	return nil
}

func (c Config) validateQueues() *FieldError {
	if c.Queues < 1 || c.Queues > tun.MaxQueues {
		return fieldQueues.errorf("%v %d: must be 1 to %d", fieldQueues, c.Queues, tun.MaxQueues)
	}
	return nil
}

func (c Config) validateClampMSS() *FieldError {
	if m := c.ClampMSS; m != ClampOff && m != ClampAuto && !m.isNumber() {
		return fieldClampMSS.errorf("%v %v: %v", fieldClampMSS, m, errClampMSS)
	}
	return nil
}

func (c Config) validateResolveInterval() *FieldError {
	if c.ResolveInterval == 0 {
		return nil
	}
	if c.RemoteName == "" {
		return fieldResolveInterval.errorf("%v needs a host name as %v", fieldResolveInterval, fieldRemote)
	}
	return duration(fieldResolveInterval, c.ResolveInterval, MinResolveInterval, MaxResolveInterval)
}

// validateKeepalive demands an inner address. Without one, echo requests would come from the
// outer address, and the replies to that by the other end's route, outside of the tunnel.
func (c Config) validateKeepalive() *FieldError {
	if c.Keepalive == 0 {
		return nil
	}
	if !c.Address.IsValid() && len(c.Addresses) == 0 {
		return fieldKeepalive.errorf("%v needs %v, the inner address of this end, to which replies come back by the tunnel", fieldKeepalive, fieldAddress)
	}
	return duration(fieldKeepalive, c.Keepalive, MinKeepalive, MaxKeepalive)
}

func (c Config) validateKeepaliveRetries() *FieldError {
	switch n := c.KeepaliveRetries; {
	case n == 0:
		return nil
	case n < 0 || n > MaxKeepaliveRetries:
		return fieldKeepaliveRetries.errorf("%v %d: must be 1 to %d", fieldKeepaliveRetries, n, MaxKeepaliveRetries)
	case c.Keepalive == 0:
		return fieldKeepaliveRetries.errorf("%v %d needs %v, the time between two echo requests", fieldKeepaliveRetries, n, fieldKeepalive)
	}
	return nil
}

func duration(f field, d, least, most Duration) *FieldError {
	if d < least || d > most {
		return f.errorf("%v %v: must be %v to %v", f, d, least, most)
	}
	return nil
}
