package oracle_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"time"

	"goipip/internal/netlab"
	run "goipip/internal/tunnel"
)

// side is one of a router's two cables.
type side int

const (
	inner side = iota
	under
	sides
)

func (s side) String() string { return [...]string{"inner", "underlay"}[s] }

// deviceNames are those of the reference and of goipip.
var deviceNames = [2]string{"ipip.ko", "goipip"}

// device is a router under test: the reference or goipip.
type device struct {
	name     string
	ports    [sides]*port // the driver's ends
	direct   *port        // into the tunnel itself, at times
	macs     [sides]net.HardwareAddr
	run      func(script string) (string, error)
	tunnel   func(tunnel) error    // replaces tun01
	counters func() (tally, error) // of tun01
}

// open finishes a device whose run and devs are known.
func (d *device) open(driver *netlab.Host, portDevs, devs [sides]string) error {
	// Scripts know the names of the devices.
	run := d.run
	d.run = func(script string) (string, error) {
		return run(fmt.Sprintf("inner=%s under=%s\n", devs[inner], devs[under]) + script)
	}
	if _, err := d.run(setUpScript); err != nil {
		return err
	}
	for s := range sides {
		out, err := d.run("ip -oneline link show dev " + devs[s])
		if err != nil {
			return err
		}
		_, mac, _ := strings.Cut(out, "link/ether ")
		if d.macs[s], err = net.ParseMAC(strings.Fields(mac)[0]); err != nil {
			return err
		}
		if d.ports[s], err = openPort(driver, portDevs[s]); err != nil {
			return err
		}
	}
	return nil
}

func (d *device) close() {
	for _, p := range d.ports {
		if p != nil {
			p.close()
		}
	}
}

// noGRO keeps packets in order: GRO holds TCP back until a batch ends. That
// makes the comparison faster, not different.
const noGRO = `perl -e 'socket(my $s, 2, 2, 0); for (@ARGV) { my $off = pack("L2", 0x2c, 0);
	ioctl($s, 0x8946, pack("a16P", $_, $off)) }' `

// newReference boots the guest.
func newReference(driver *netlab.Host) (*device, error) {
	guest, err := driver.StartGuest(netlab.GuestConfig{Cards: []string{"ref-inner", "ref-under"}})
	if err != nil {
		return nil, err
	}
	if err := guest.LoadModules("ipip", "sch-ingress", "cls-matchall", "act-mirred"); err != nil {
		return nil, err
	}
	d := &device{name: deviceNames[0], run: guest.Run}
	d.tunnel = func(c tunnel) error {
		_, err := d.run(c.script() + c.inTunnel() + noGRO + "$inner $under tun01")
		return err
	}
	d.counters = func() (tally, error) {
		line, err := d.run("grep tun01: /proc/net/dev")
		if err != nil {
			return nil, err
		}
		return parseNetDev(line)
	}
	return d, d.open(driver, [sides]string{"ref-inner", "ref-under"}, [sides]string{"vec0", "vec1"})
}

// goipip is a router with goipip in this process.
type goipip struct {
	device
	host   *netlab.Host
	engine *run.Tunnel
	cancel context.CancelFunc
	ended  chan error

	fast    run.FastPath
	carried [2]uint64 // packets that the kernel has sent and received by itself, of tunnels that have ended
}

// newGoipip makes the router, without a tunnel.
func newGoipip(lab *netlab.Lab, driver *netlab.Host, fast run.FastPath) (*goipip, error) {
	host, err := lab.Host("goipip")
	if err != nil {
		return nil, err
	}
	if err := errors.Join(
		lab.Veth(driver, "our-inner", host, "inner"),
		lab.Veth(driver, "our-under", host, "under"),
	); err != nil {
		return nil, err
	}
	g := &goipip{host: host, fast: fast}
	g.name = deviceNames[1]
	g.run = func(script string) (string, error) { return host.Output("sh", "-c", script) }
	g.device.tunnel = g.replace
	g.device.counters = func() (tally, error) { return ofLink(g.engine.Stats().Link()), nil }
	return g, g.open(driver, [sides]string{"our-inner", "our-under"}, [sides]string{"inner", "under"})
}

// replace ends the tunnel and starts another.
func (g *goipip) replace(c tunnel) error {
	if err := g.stop(); err != nil {
		return err
	}
	if err := g.host.SetMTU("under", c.underlay()); err != nil {
		return err
	}
	cfg := run.Config{
		Name: "tun01", Local: localAddr, Remote: remoteAddr, Queues: 1,
		TTL: c.ttl, TOS: c.tos, InheritTOS: c.inheritTOS, NoPMTUDisc: c.nopmtudisc, MTU: c.mtu, Fast: g.fast,
	}
	if c.dev {
		cfg.Device = "under"
	}
	if c.anyLocal {
		cfg.Local = netip.Addr{}
	}
	if err := cfg.Validate(); err != nil {
		return err
	}
	if err := g.host.Do(func() (err error) {
		g.engine, err = run.Open(cfg, slog.New(slog.DiscardHandler))
		return err
	}); err != nil {
		return err
	}
	var ctx context.Context
	ctx, g.cancel = context.WithCancel(context.Background())
	g.ended = make(chan error, 1)
	go func(tunnel *run.Tunnel) { g.ended <- tunnel.Run(ctx) }(g.engine)
	_, err := g.run(c.inTunnel())
	return err
}

// stop ends the tunnel, if there is one.
func (g *goipip) stop() error {
	if g.cancel == nil {
		return nil
	}
	s := g.engine.State()
	g.carried[encap] += s.FastSent
	g.carried[decap] += s.FastReceived
	g.cancel()
	g.cancel = nil
	select {
	case err := <-g.ended:
		return err
	case <-time.After(10 * time.Second):
		return errors.New("goipip does not stop")
	}
}
