//go:build linux

package main

import (
	"errors"
	"fmt"
	"strconv"

	"goipip/internal/daemon/config"
	"goipip/internal/tunnel"

	"github.com/spf13/pflag"
)

// options is what the flags say.
type options struct {
	tunnel    tunnel.Config
	workers   int    // 0 for as many as a tunnel has queues
	control   string // path of the control socket; empty for that of the network namespace
	metrics   string // where to serve them; empty for nowhere
	logLevel  string
	logFormat string
}

func (o *options) register(f *pflag.FlagSet) {
	c := &o.tunnel
	setting := func(name, kind, usage string) {
		f.Var(settingValue{config.Settings[name], c, kind}, name, usage)
	}
	f.SortFlags = false
	setting("local", "address", "outer address of this end, on this host, or a device for its address; any for what the route picks")
	setting("remote", "address", "outer address of the other end, or a host name")
	setting("resolve-interval", "time", "look the name of the other end up at least so often, 1s to 24h (default: by the answer's TTL)")
	f.StringVar(&c.Name, "name", "", "name of the link (default: the first free of goipip0, goipip1, …)")
	setting("address", "address", "inner address of this end, A or A/length")
	setting("peer", "address", "inner address of the other end")
	f.Var(&numberValue{p: &c.MTU, least: tunnel.MinMTU, most: tunnel.MaxMTU}, "mtu", "of the link, 68 to 65515 (default: from the route to the remote end)")
	setting("ttl", "hops", "of outer packets, 1 to 255, or inherit")
	setting("tos", "tos", "of outer packets, hexadecimal 00 to ff, or inherit")
	f.BoolVar(&c.NoPMTUDisc, "nopmtudisc", false, "set DF on outer packets only where the inner packet has it")
	f.StringVar(&c.Device, "dev", "", "device that outer packets leave by")
	setting("fwmark", "mark", "of outer packets, by which their route may be chosen (ip rule add fwmark)")
	setting("icmp", "word", "when to tell senders of ICMP errors: linux, with their next packet, or rfc2003, at once")
	setting("keepalive", "time", "send an echo request through the tunnel when nothing has come by it for so long, 100ms to 1h (default: send none)")
	f.Var(&numberValue{p: &c.KeepaliveRetries, least: 1, most: tunnel.MaxKeepaliveRetries}, "keepalive-retries", "how many of them may be lost before the link's carrier goes off, 1 to 100 (default: 3)")
	c.Queues = tunnel.DefaultQueues()
	f.Var(&numberValue{p: &c.Queues, least: 1, most: tunnel.MaxQueues}, "queues", "of the link; by default one for every two cores, at most 4")
	o.registerWorkers(f)
	setting("offload", "word", "what the kernel's side of the link leaves to goipip, auto or off")
	setting("tx", "word", "how packets leave: by raw or by packet socket, or auto: the faster one where that changes nothing")
	setting("fast-path", "word", "whether the kernel carries packets by itself, by BPF: off, auto, where it can and that changes nothing, or on")
	setting("clamp-mss", "bytes", "largest MSS of TCP connections through the tunnel: off, auto (what fits link and path), or 536 to 65475")
	o.registerMetrics(f)
	f.Var(newEnum(&o.logLevel, config.LogLevels), "log-level", "debug, info, warn or error")
	f.Var(newEnum(&o.logFormat, config.LogFormats), "log-format", "text, json, or journal: by fields to the systemd journal; auto: that where standard error goes there, else text")
}

func (o *options) registerWorkers(f *pflag.FlagSet) {
	f.Var(&numberValue{p: &o.workers, least: 1, most: maxWorkers}, "workers", "pairs of threads that carry packets, 1 to 64 (default: as many as a tunnel has queues)")
}

func (o *options) registerMetrics(f *pflag.FlagSet) {
	f.Var(listenValue{&o.metrics}, "metrics", "where to serve metrics for Prometheus: a port of the loopback, :9747, or an address and a port (default: nowhere)")
}

// config returns the checked tunnel that the options describe.
func (o *options) config() (tunnel.Config, error) {
	c := o.tunnel
	var errs []error
	for _, e := range c.FieldErrors() {
		errs = append(errs, errors.New(e.Text(func(field string) string { return "--" + field })))
	}
	if len(errs) > 0 {
		return c, usageError{errors.Join(errs...)}
	}
	return c, nil
}

// settingValue is a setting as a flag.
type settingValue struct {
	config.Setting
	tunnel *tunnel.Config
	kind   string // of value, for the help
}

func (v settingValue) Set(s string) error { return v.Setting.Set(v.tunnel, s) }
func (v settingValue) Type() string       { return v.kind }
func (v settingValue) String() string     { return v.Text(v.tunnel) }

// enumValue is one of a few words.
type enumValue struct {
	p     *string
	words []string
}

// newEnum sets *p to the first word, the default.
func newEnum(p *string, words []string) enumValue {
	*p = words[0]
	return enumValue{p, words}
}

func (v enumValue) Set(s string) error {
	err := config.OneOf(s, v.words)
	if err == nil {
		*v.p = s
	}
	return err
}

func (v enumValue) Type() string   { return "word" }
func (v enumValue) String() string { return *v.p }

// listenValue is where to listen.
type listenValue struct{ p *string }

func (v listenValue) Set(s string) error {
	at, err := config.ParseListen(s)
	if err == nil {
		*v.p = at
	}
	return err
}

func (v listenValue) Type() string { return "address" }

func (v listenValue) String() string {
	if v.p == nil {
		return ""
	}
	return *v.p
}

// maxWorkers is the most workers that a process may have.
const maxWorkers = 64

// numberValue is a number in a range.
type numberValue struct {
	p           *int
	least, most int
}

func (v *numberValue) Set(s string) error {
	n, err := strconv.ParseInt(s, 0, strconv.IntSize)
	if err != nil || int(n) < v.least || int(n) > v.most {
		return fmt.Errorf("must be %d to %d", v.least, v.most)
	}
	*v.p = int(n)
	return nil
}

func (v *numberValue) Type() string { return "number" }

func (v *numberValue) String() string {
	if v.p == nil || *v.p == 0 {
		return "" // the default is made of something else
	}
	return strconv.Itoa(*v.p)
}
