// Package peer is the device's side: it carries the CoAP datagrams of a process without DTLS through a DTLS session.
package peer

import (
	"context"
	"errors"
	"net"
	"sync/atomic"
	"time"

	"github.com/pion/dtls/v3"
)

const (
	maxDatagram      = 8192
	handshakeTimeout = 15 * time.Second
)

// Peer relays between one local UDP client and a DTLS server. Its first local datagram opens the session.
type Peer struct {
	local    *net.UDPConn
	outer    *socket
	server   *net.UDPAddr
	identity []byte
	secret   []byte
	client   atomic.Pointer[net.UDPAddr]
}

// New binds `local` for the client's datagrams.
func New(local, server *net.UDPAddr, identity, secret []byte) (*Peer, error) {
	socket, err := net.ListenUDP("udp", local)
	if err != nil {
		return nil, err
	}
	outer, err := newSocket(server)
	if err != nil {
		return nil, errors.Join(err, socket.Close())
	}
	return &Peer{local: socket, outer: outer, server: server, identity: identity, secret: secret}, nil
}

// Address is where the local client sends its datagrams.
func (p *Peer) Address() net.Addr { return p.local.LocalAddr() }

// Rebind moves the session to another source port, as a NAT does that has forgotten the device.
func (p *Peer) Rebind() error { return p.outer.rebind() }

// Serve relays until the context ends or the session breaks.
func (p *Peer) Serve(ctx context.Context) error {
	defer p.outer.Close()
	stop := context.AfterFunc(ctx, func() { _ = p.local.Close() })
	defer stop()
	defer p.local.Close()
	buffer := make([]byte, maxDatagram)
	count, client, err := p.local.ReadFromUDP(buffer)
	if err != nil {
		return ended(ctx, err)
	}
	p.client.Store(client)
	secure, err := p.connect(ctx)
	if err != nil {
		return err
	}
	defer secure.Close()
	go func() {
		defer p.local.Close()
		back := make([]byte, maxDatagram)
		for {
			count, err := secure.Read(back)
			if err != nil {
				return
			}
			if _, err := p.local.WriteToUDP(back[:count], p.client.Load()); err != nil && errors.Is(err, net.ErrClosed) {
				return
			}
		}
	}()
	for {
		if _, err := secure.Write(buffer[:count]); err != nil {
			return ended(ctx, err)
		}
		count, client, err = p.local.ReadFromUDP(buffer)
		if err != nil {
			return ended(ctx, err)
		}
		p.client.Store(client)
	}
}

func (p *Peer) connect(ctx context.Context) (*dtls.Conn, error) {
	secure, err := dtls.ClientWithOptions(p.outer, p.server,
		dtls.WithPSK(func([]byte) ([]byte, error) { return p.secret, nil }),
		dtls.WithPSKIdentityHint(p.identity),
		dtls.WithCipherSuites(dtls.TLS_PSK_WITH_AES_128_CCM_8),
		// The server's records need no Connection ID here: this side has one session.
		dtls.WithConnectionIDGenerator(dtls.OnlySendCIDGenerator()),
	)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	if err := secure.HandshakeContext(ctx); err != nil {
		return nil, errors.Join(err, secure.Close())
	}
	return secure, nil
}

func ended(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}
