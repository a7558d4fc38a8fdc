package doctor

import (
	"fmt"

	"goipip/internal/tunnel"

	"github.com/safchain/ethtool"
	"github.com/vishvananda/netlink"
)

// Names of features, as ethtool -K takes them.
const (
	featureGRO     = "rx-gro"
	featureGROList = "rx-gro-list"
	featureGROUDP  = "rx-udp-gro-forwarding"
	featureGSO     = "tx-ipxip4-segmentation"
)

// features returns those of a device, or nil where it says nothing.
func features(device string) map[string]ethtool.FeatureState {
	e, err := ethtool.NewEthtool()
	if err != nil {
		return nil
	}
	defer e.Close()
	f, err := e.FeaturesWithState(device)
	if err != nil {
		return nil
	}
	return f
}

// gro looks for receive offloads that merge what is no stream, at the device or what is below it.
func (e *exam) gro(d link) (list []Result) {
	for _, name := range receivers(d, e.links()) {
		all := features(name)
		for _, f := range []string{featureGROList, featureGROUDP} {
			if all[featureGRO].Active && all[f].Active {
				list = append(list, Result{
					Status: Failure, Saw: fmt.Sprintf("%s has %s on", name, f),
					Why:      "the kernel merges UDP datagrams within outer packets, so that they come out of the tunnel as one that is too long",
					Commands: []string{command("ethtool", "-K", name, f, "off")},
				})
			}
		}
	}
	if list == nil {
		return good("%s merges no datagrams on receipt", d.name)
	}
	return list
}

// receivers returns the names of a device and of what it receives by: the parent of a VLAN or
// macvlan, and the ports of a bond or bridge.
func receivers(d link, all []netlink.Link) []string {
	names := []string{d.name}
	for _, l := range all {
		if l.Attrs().Index != d.index {
			continue
		}
		for _, other := range all {
			a := other.Attrs()
			child := (l.Type() == "vlan" || l.Type() == "macvlan") && a.Index == l.Attrs().ParentIndex
			if child || a.MasterIndex == d.index {
				names = append(names, a.Name)
			}
		}
	}
	return names
}

// segmentation looks whether superpackets of the fast path leave whole.
func (e *exam) segmentation(d link) []Result {
	f, known := features(d.name)[featureGSO]
	fast := false
	for _, s := range e.subjects {
		fast = fast || s.device == d && s.Config.Fast != tunnel.FastOff
	}
	switch {
	case !known:
		return nil
	case f.Active:
		return good("%s takes superpackets of the fast path whole", d.name)
	case !fast:
		return good("%s does not take superpackets of a fast path, which no tunnel asks for", d.name)
	}
	r := Result{
		Status: Warning, Saw: fmt.Sprintf("%s has %s off", d.name, featureGSO),
		Why:  "on the fast path the kernel cuts superpackets in software, which costs it most of the gain",
		Cure: "the device cannot do it: nothing is to be done",
	}
	if f.Available && !f.NeverChanged {
		r.Cure, r.Commands = "", []string{command("ethtool", "-K", d.name, featureGSO, "on")}
	}
	return []Result{r}
}
