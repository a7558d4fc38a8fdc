//go:build linux

package main

import (
	"cmp"
	"context"
	"errors"
	"net/netip"
	"slices"

	"goipip/internal/daemon"
	"goipip/internal/daemon/config"
	"goipip/internal/daemon/control"
	"goipip/internal/doctor"
	"goipip/internal/tunnel"

	"github.com/spf13/cobra"
)

// doctorOptions is what the flags of goipip doctor say.
type doctorOptions struct {
	options // of the tunnel that is wanted
	config  string
	probe   string
	json    bool
}

func newDoctorCommand(o *options) *cobra.Command {
	var d doctorOptions
	cmd := &cobra.Command{
		Use:   "doctor [--config FILE | --remote ADDRESS …] [--probe REMOTE]",
		Short: "Check this host for missing requirements and conflicts",
		Long: `Check what keeps tunnels from working, or from working well, on this host: say
what was seen, why it matters, and how to mend it, with the commands that do it.

Without options the tunnels that run here are examined; with those of a tunnel, or
with --config, tunnels that are wanted. Nothing is changed. With --probe a few
packets go to the remote end, which tell whether protocol 4 arrives there, and what
is in the way.

Each line is ok, warning (a tunnel works, but not as well as it might, or not
always) or failure. The exit status is 1 if there is a failure. docs/troubleshooting.md
explains each check. Colours appear on terminals only, and not if NO_COLOR is set.`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := needTunnelDescriptors(tunnel.Config{Queues: 1}, 1); err != nil {
				return err
			}
			examine, err := d.examine(cmd, o)
			if err != nil {
				return err
			}
			results := doctor.Run(cmd.Context(), examine)
			out := cmd.OutOrStdout()
			if d.json {
				err = doctor.WriteJSON(out, results)
			} else {
				view := newView(out)
				err = doctor.WriteText(out, results, doctor.Layout{Width: view.Width, Colour: view.Colour})
			}
			if err == nil && doctor.Worst(results) == doctor.Failure {
				err = statusError(exitError)
			}
			return err
		},
	}
	d.register(cmd.Flags())
	for _, name := range []string{"workers", "log-level", "log-format"} { // which no check depends on
		_ = cmd.Flags().MarkHidden(name)
	}
	cmd.Flags().StringVar(&d.config, "config", "", "examine the tunnels of this file, or directory of files *.toml")
	cmd.Flags().StringVar(&d.probe, "probe", "", "send packets to this remote end, and say what comes back")
	cmd.Flags().BoolVar(&d.json, "json", false, "print a JSON document")
	return cmd
}

// examine returns what to examine.
func (d *doctorOptions) examine(cmd *cobra.Command, o *options) (examine doctor.Options, err error) {
	if d.probe != "" {
		if examine.Probe, err = netip.ParseAddr(d.probe); err != nil || !examine.Probe.Is4() {
			return examine, usageError{errors.New("--probe " + d.probe + ": not an IPv4 address")}
		}
	}
	wanted, err := d.wanted(cmd, examine.Probe)
	if err != nil {
		return examine, err
	}
	running := running(cmd.Context(), o)
	if wanted == nil {
		examine.Tunnels = running
	}
	for _, c := range wanted {
		examine.Tunnels = append(examine.Tunnels, runningOr(c, running))
	}
	probed := func(t doctor.Tunnel) bool { return t.Config.Remote == examine.Probe }
	if examine.Probe.IsValid() && !slices.ContainsFunc(examine.Tunnels, probed) {
		examine.Tunnels = append(examine.Tunnels, doctor.Tunnel{Config: tunnel.Config{Remote: examine.Probe, Queues: 1}})
	}
	if wanted != nil {
		all := make([]config.Tunnel, len(wanted))
		for i, c := range wanted {
			all[i].Config = c
		}
		examine.Descriptors = needDaemonDescriptors(all, cmp.Or(d.workers, daemon.Workers(all)))
	}
	return examine, nil
}

// wanted returns the tunnels that the options describe; none to examine those that run.
func (d *doctorOptions) wanted(cmd *cobra.Command, probe netip.Addr) ([]tunnel.Config, error) {
	given := false
	for _, name := range []string{"local", "remote", "name", "address", "peer", "mtu", "tos", "dev", "fwmark", "fast-path", "tx"} {
		given = given || cmd.Flags().Changed(name)
	}
	switch {
	case given && d.config != "":
		return nil, usageError{errors.New("give either --config or the options of a tunnel")}
	case d.config != "":
		file, err := config.Read(d.config)
		if err != nil {
			return nil, err
		}
		var all []tunnel.Config
		for _, t := range file.Tunnels {
			all = append(all, t.Config)
		}
		return all, nil
	case given:
		if !d.tunnel.Remote.IsValid() && d.tunnel.RemoteName == "" {
			d.tunnel.Remote = probe
		}
		c, err := d.options.config()
		return []tunnel.Config{c}, err
	}
	return nil, nil
}

// running returns the tunnels that run in this network namespace, and none if that is not known.
func running(ctx context.Context, o *options) (list []doctor.Tunnel) {
	ctx, cancel := context.WithTimeout(ctx, completionTimeout)
	defer cancel()
	all, err := o.statuses(ctx)
	if err != nil {
		return nil // such as without permission
	}
	for _, s := range all {
		for _, t := range s.Tunnels {
			list = append(list, runningTunnel(t))
		}
	}
	return list
}

func runningTunnel(t control.TunnelStatus) doctor.Tunnel {
	return doctor.Tunnel{
		Config: t.Config, Running: t.Index != 0, Index: t.Index, Up: t.Up, Away: t.Away, MTU: t.MTU,
		Sent: t.TX.Packets, Received: t.RX.Packets,
	}
}

// runningOr returns the running tunnel that is the wanted one, or that as one that does not run.
func runningOr(c tunnel.Config, running []doctor.Tunnel) doctor.Tunnel {
	for _, t := range running {
		sameLocal := t.Config.Local == c.Local || c.LocalDevice != "" && t.Config.LocalDevice == c.LocalDevice
		sameRemote := t.Config.Remote == c.Remote || c.RemoteName != "" && t.Config.RemoteName == c.RemoteName
		if sameLocal && sameRemote && (c.Name == "" || c.Name == t.Config.Name) {
			return t
		}
	}
	return doctor.Tunnel{Config: c}
}
