package capture

import (
	"io"
	"runtime"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"
)

// Writer writes packets as pcapng. Its interfaces have one link type and snap length, as
// programs based on libpcap want it.
type Writer struct {
	to          *pcapgo.NgWriter
	description string // of its interfaces
	filter      string
	interfaces  map[string]int // numbers, by name
}

// NewWriter begins a file, whose first interface is called name. Other interfaces are added
// with their first packets.
func NewWriter(to io.Writer, name, description, filter string) (*Writer, error) {
	w := &Writer{description: description, filter: filter, interfaces: map[string]int{name: 0}}
	var err error
	w.to, err = pcapgo.NewNgWriterInterface(to, w.describe(name), pcapgo.NgWriterOptions{
		SectionInfo: pcapgo.NgSectionInfo{Hardware: runtime.GOARCH, OS: runtime.GOOS, Application: "goipip"},
	})
	if err != nil {
		return nil, err
	}
	return w, w.to.Flush()
}

func (w *Writer) describe(name string) pcapgo.NgInterface {
	return pcapgo.NgInterface{
		Name: name, Description: w.description, Filter: w.filter, OS: runtime.GOOS,
		LinkType: layers.LinkTypeRaw, SnapLength: longest, TimestampResolution: 9,
	}
}

// Write writes a packet. It may wait in memory until Flush.
func (w *Writer) Write(p Packet) error {
	id, ok := w.interfaces[p.Interface]
	if !ok {
		var err error
		if id, err = w.to.AddInterface(w.describe(p.Interface)); err != nil {
			return err
		}
		w.interfaces[p.Interface] = id
	}
	options := pcapgo.NgPacketOptions{Flags: &pcapgo.NgEpbFlags{Direction: pcapgo.NgEpbFlagDirectionInbound}}
	if p.Out {
		options.Flags.Direction = pcapgo.NgEpbFlagDirectionOutbound
	}
	if p.Comment != "" {
		options.Comments = []string{p.Comment}
	}
	info := gopacket.CaptureInfo{Timestamp: p.Time, CaptureLength: len(p.Data), Length: p.Length, InterfaceIndex: id}
	return w.to.WritePacketWithOptions(info, p.Data, options)
}

// Flush writes what waits in memory.
func (w *Writer) Flush() error { return w.to.Flush() }
