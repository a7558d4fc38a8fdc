package capture

import (
	"io"
	"runtime"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"
)

// File describes a file of packets.
type File struct {
	Interfaces  []string // of its packets
	Description string   // of the interfaces
	Filter      string   // the expression by which they were chosen
}

// Writer writes packets as pcapng.
type Writer struct {
	to         *pcapgo.NgWriter
	interfaces map[string]int // numbers, by name
}

// NewWriter begins a file.
func NewWriter(to io.Writer, f File) (*Writer, error) {
	describe := func(name string) pcapgo.NgInterface {
		i := pcapgo.NgInterface{Name: name, Description: f.Description, Filter: f.Filter, OS: runtime.GOOS, LinkType: layers.LinkTypeRaw, SnapLength: longest}
		if len(f.Interfaces) > 1 {
			// libpcap takes interfaces for of several types, if the number of their type in a
			// file is not that in memory, as for LINKTYPE_RAW (sf-pcapng.c).
			i.LinkType = layers.LinkTypeIPv4
		}
		return i
	}
	w := &Writer{interfaces: map[string]int{f.Interfaces[0]: 0}}
	var err error
	w.to, err = pcapgo.NewNgWriterInterface(to, describe(f.Interfaces[0]), pcapgo.NgWriterOptions{
		SectionInfo: pcapgo.NgSectionInfo{Hardware: runtime.GOARCH, OS: runtime.GOOS, Application: "goipip"},
	})
	for _, name := range f.Interfaces[1:] {
		if err == nil {
			w.interfaces[name], err = w.to.AddInterface(describe(name))
		}
	}
	if err != nil {
		return nil, err
	}
	return w, w.to.Flush()
}

// Write writes a packet of one of the interfaces. It may wait in memory until Flush.
func (w *Writer) Write(p Packet) error {
	options := pcapgo.NgPacketOptions{Flags: &pcapgo.NgEpbFlags{Direction: pcapgo.NgEpbFlagDirectionInbound}}
	if p.Out {
		options.Flags.Direction = pcapgo.NgEpbFlagDirectionOutbound
	}
	if p.Comment != "" {
		options.Comments = []string{p.Comment}
	}
	info := gopacket.CaptureInfo{Timestamp: p.Time, CaptureLength: len(p.Data), Length: p.Length, InterfaceIndex: w.interfaces[p.Interface]}
	return w.to.WritePacketWithOptions(info, p.Data, options)
}

// Flush writes what waits in memory.
func (w *Writer) Flush() error { return w.to.Flush() }
