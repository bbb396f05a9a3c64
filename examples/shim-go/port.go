package main

import (
	"fmt"
	"io"
	"net"
	"strconv"
	"time"

	"banyan.dev/examples/shim-go/shimv1"
)

const (
	maxConnections = 1024             // of one site port at a time; further ones wait in the kernel's queue
	patience       = 30 * time.Second // for an instance to become ready
)

// sitePort listens where devices of the site call, and passes each connection on to an instance that is ready. It stays while
// instances and revisions come and go.
type sitePort struct {
	number   int32
	problem  string
	listener net.Listener
}

func openPort(c *cluster, uid string, component *shimv1.Component) *sitePort {
	port := &sitePort{number: component.GetPort()}
	listener, err := net.Listen("tcp", net.JoinHostPort(c.bind, strconv.Itoa(int(port.number))))
	if err != nil {
		port.problem = fmt.Sprintf("%v; free it or choose another port", err)
		return port
	}
	port.listener = listener
	go port.serve(c, uid, component.GetName())
	return port
}

func (p *sitePort) close() {
	if p.listener != nil {
		p.listener.Close()
	}
}

func (p *sitePort) serve(c *cluster, uid, component string) {
	room := make(chan struct{}, maxConnections)
	for {
		room <- struct{}{}
		client, err := p.listener.Accept()
		if err != nil {
			return // closed: the component is gone, or its port is another
		}
		go func() {
			defer func() { <-room }()
			defer client.Close()
			for latest := time.Now().Add(patience); time.Now().Before(latest); time.Sleep(50 * time.Millisecond) {
				if found, err := c.find(uid, component, "", true); err == nil {
					found.serving.Add(1)
					defer found.serving.Add(-1)
					if connection, err := found.dial(); err == nil {
						pass(client.(*net.TCPConn), connection)
					}
					return
				}
			}
		}()
	}
}

// pass carries bytes both ways, and each side's end by itself.
func pass(a, b *net.TCPConn) {
	defer b.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		io.Copy(b, a)
		b.CloseWrite()
	}()
	io.Copy(a, b)
	a.CloseWrite()
	<-done
}
