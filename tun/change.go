package tun

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// Change turns the configuration from, which the link got by Setup or Change, into to.
// It touches nothing that is the same in both, nor addresses and routes that others
// have added, and adds addresses and routes before it removes others. It does not bring
// the link up.
//
// What the link has already, or has lost meanwhile, is not an error. After an error
// Change goes on with the rest; it returns all errors joined, each with what it was
// about. Calls for one device must not overlap.
//
// Where addresses are removed, Change adds the routes again that the kernel removed with
// them, and sets the link's promote_secondaries (ip-sysctl.rst), without which the kernel
// removes all addresses of a subnet with its first one. Routes with a removed address as
// their source cannot stay.
func (d *Device) Change(from, to Link) error {
	c := change{host: d.host, index: d.index}
	c.settings(&from, &to)
	oldAddrs, newAddrs := from.addresses(), to.addresses()
	for _, a := range without(newAddrs, oldAddrs) {
		c.do(func() error { return c.host.addAddress(c.index, a) })
	}
	oldRoutes, newRoutes := inTables(from.Routes), inTables(to.Routes)
	for _, r := range without(newRoutes, oldRoutes) {
		c.do(func() error { return c.host.addRoute(c.index, r) })
	}
	for _, r := range without(oldRoutes, newRoutes) {
		c.do(func() error { return c.host.removeRoute(c.index, r) })
	}
	c.removeAddresses(without(oldAddrs, newAddrs), newRoutes)
	if err := errors.Join(c.errs...); err != nil {
		return fmt.Errorf("change %s: %w", d.name, err)
	}
	return nil
}

// without returns the elements of list that are not in others.
func without[T comparable](list, others []T) []T {
	return slices.DeleteFunc(slices.Clone(list), func(e T) bool { return slices.Contains(others, e) })
}

// inTables returns routes with the numbers of their tables.
func inTables(routes []Route) []Route {
	routes = slices.Clone(routes)
	for i, r := range routes {
		routes[i] = r.inTable()
	}
	return routes
}

// change is a Change under way.
type change struct {
	host  *Host
	index int
	errs  []error
}

// do takes a step, unless it is known that the link is gone.
func (c *change) do(step func() error) {
	if n := len(c.errs); n > 0 && errors.Is(c.errs[n-1], unix.ENODEV) {
		return
	}
	if err := step(); err != nil {
		c.errs = append(c.errs, err)
	}
}

func (c *change) settings(from, to *Link) {
	var settings []setting
	if from.MTU != to.MTU {
		// Below 1280 bytes, the kernel forgets what it was told about IPv6
		// (addrconf_notify).
		settings = append(settings, mtuSetting(to.MTU), noIPv6Setting())
	}
	if from.Remote != to.Remote {
		settings = append(settings, remoteSetting(to.Remote))
	}
	if from.Alias != to.Alias {
		settings = append(settings, aliasSetting(to.Alias))
	}
	c.errs = append(c.errs, c.host.setLink(c.index, settings...)...)
}

// removeAddresses removes addresses and adds the routes again that the kernel removes
// with them: all routes with the last address of a link (fib_inetaddr_event), and
// routes that it had made for an address but that are in wanted too.
func (c *change) removeAddresses(addrs []address, wanted []Route) {
	if len(addrs) == 0 {
		return
	}
	var before, after []foundRoute
	list := func(routes *[]foundRoute) func() error {
		return func() (err error) {
			*routes, err = c.host.routes(c.index)
			return err
		}
	}
	c.do(list(&before))
	c.do(func() error { return errors.Join(c.host.setLink(c.index, promoteSetting())...) })
	gone := map[netip.Addr]bool{}
	for _, a := range addrs {
		c.do(func() error { return c.host.removeAddress(c.index, a) })
		gone[a.local.Addr()] = true
	}
	c.do(list(&after))
	for i := range before {
		r := &before[i]
		if slices.ContainsFunc(after, func(a foundRoute) bool { return a.msg == r.msg }) {
			continue
		}
		lost := r.kernel || gone[r.source] // cannot be as it was
		switch {
		case lost && slices.Contains(wanted, r.Route):
			c.do(func() error { return c.host.addRoute(c.index, r.Route) })
		case lost:
		default:
			c.do(func() error { return c.host.restoreRoute(r) })
		}
	}
}
