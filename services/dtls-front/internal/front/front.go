// Package front ends DTLS 1.2 (RFC 6347) sessions of devices and relays their CoAP datagrams to the bridge beside it.
//
// Each session has a UDP socket of its own on loopback, so that the bridge sees each device at an address of its own, and is
// told by the front which identity has proven itself there. Sessions carry Connection IDs (RFC 9146): a device whose NAT gives
// it another address goes on without a handshake.
package front

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pion/dtls/v3"
	"github.com/pion/dtls/v3/pkg/protocol/handshake"
	"golang.org/x/sync/semaphore"
	"golang.org/x/time/rate"

	"tinymlaas/dtls-front/internal/bridge"
)

const (
	connectionIDBytes = 8
	maxDatagram       = 8192
	maxIdentity       = 128
)

// Bridge is what the front needs of the bridge.
type Bridge interface {
	ResolveKey(ctx context.Context, identity []byte) ([]byte, error)
	Open(ctx context.Context, session bridge.Session) error
	Closed(id string)
}

// Counters of what happened since the start.
type Counters struct {
	Handshakes, HandshakesFailed, HandshakesLimited, SessionsRefused, DatagramsIn, DatagramsOut, DatagramsLimited atomic.Uint64
	Sessions                                                                                                      atomic.Int64
}

// Front serves one UDP address.
type Front struct {
	mux      *mux
	bridge   Bridge
	coap     *net.UDPAddr
	limits   Limits
	slots    *semaphore.Weighted
	sources  *sources
	Counters Counters

	mutex    sync.Mutex
	sessions map[string][]*session // by identity, oldest first
	running  sync.WaitGroup
}

type session struct {
	id     string
	secure *dtls.Conn
	relay  *net.UDPConn
	end    func()
}

// Listen binds `address`; datagrams go to the bridge's CoAP socket at `coap`.
func Listen(address, coap *net.UDPAddr, keys Bridge, limits Limits) (*Front, error) {
	front := &Front{
		bridge:   keys,
		coap:     coap,
		limits:   limits,
		slots:    semaphore.NewWeighted(int64(limits.Handshakes)),
		sources:  newSources(limits),
		sessions: map[string][]*session{},
	}
	mux, err := newMux(address, limits.Unproven)
	if err != nil {
		return nil, err
	}
	front.mux = mux
	return front, nil
}

// secure puts DTLS over a flow. `proven` is called once the peer has returned its cookie, before it is answered.
func (f *Front) secure(from *flow, proven func()) (*dtls.Conn, error) {
	return dtls.ServerWithOptions(from, from.peer,
		dtls.WithPSK(f.key),
		dtls.WithCipherSuites(
			dtls.TLS_PSK_WITH_AES_128_CCM_8, dtls.TLS_PSK_WITH_AES_128_CCM,
			dtls.TLS_PSK_WITH_AES_128_GCM_SHA256, dtls.TLS_PSK_WITH_AES_128_CBC_SHA256,
		),
		// LwM2M 1.1 devices of before RFC 7627 are in the field; the PSK authenticates the session either way.
		dtls.WithExtendedMasterSecret(dtls.RequestExtendedMasterSecret),
		dtls.WithConnectionIDGenerator(func() []byte { return from.name[:] }),
		dtls.WithServerHelloMessageHook(func(hello handshake.MessageServerHello) handshake.Message {
			proven()
			return &hello
		}),
	)
}

// Address is where the front listens.
func (f *Front) Address() net.Addr { return f.mux.socket.LocalAddr() }

// key answers a handshake; any error fails it in the same way, whether the identity is unknown or the bridge away.
func (f *Front) key(identity []byte) ([]byte, error) {
	if len(identity) == 0 || len(identity) > maxIdentity {
		return nil, bridge.ErrUnknownIdentity
	}
	ctx, cancel := context.WithTimeout(context.Background(), f.limits.HandshakeTimeout)
	defer cancel()
	return f.bridge.ResolveKey(ctx, identity)
}

// Serve takes sessions until the context ends, then ends them all.
func (f *Front) Serve(ctx context.Context) error {
	defer f.running.Wait()
	defer f.mux.socket.Close()
	defer f.endAll()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	broken := make(chan error, 1)
	go func() { broken <- f.mux.run() }()
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-broken:
			return err
		case from := <-f.mux.accepted:
			if from != nil { // nil: the mux has ended, and says why
				f.running.Go(func() { f.welcome(ctx, from) })
			}
		}
	}
}

// welcome does one handshake and relays the session until it ends. A place for it is taken once its address is proven.
func (f *Front) welcome(ctx context.Context, from *flow) {
	defer from.Close()
	place := &place{front: f}
	secure, err := f.secure(from, func() {
		if place.take(from.peer) {
			from.proven()
		} else {
			_ = from.Close() // unanswered, as if the datagram had been lost
		}
	})
	if err != nil {
		slog.Error("no handshake can be done", "error", err)
		return
	}
	defer secure.Close()
	opened, err := f.handshake(ctx, secure)
	proven := place.leave()
	switch {
	case err != nil && !proven:
		return // whoever it was has proven nothing, or got no place: not worth a line
	case err != nil:
		f.Counters.HandshakesFailed.Add(1)
		slog.Info("handshake failed", "peer", from.peer.String(), "error", err)
		return
	}
	from.settle()
	f.Counters.Handshakes.Add(1)
	defer opened.end()
	defer context.AfterFunc(ctx, opened.end)()
	var relayed sync.WaitGroup
	relayed.Go(func() { defer opened.end(); f.outward(opened) })
	f.inward(opened)
	opened.end()
	relayed.Wait()
}

func (f *Front) handshake(ctx context.Context, secure *dtls.Conn) (*session, error) {
	ctx, cancel := context.WithTimeout(ctx, f.limits.HandshakeTimeout)
	defer cancel()
	if err := secure.HandshakeContext(ctx); err != nil {
		return nil, err
	}
	state, ok := secure.ConnectionState()
	if !ok {
		return nil, errors.New("no state after the handshake")
	}
	relay, err := net.DialUDP("udp", &net.UDPAddr{IP: f.coap.IP}, f.coap)
	if err != nil {
		return nil, err
	}
	var name [16]byte
	if _, err := rand.Read(name[:]); err != nil {
		return nil, errors.Join(err, relay.Close())
	}
	identity := string(state.IdentityHint)
	opened := &session{id: hex.EncodeToString(name[:]), secure: secure, relay: relay}
	opened.end = sync.OnceFunc(func() { f.end(identity, opened) })
	if !f.add(identity, opened) {
		f.Counters.SessionsRefused.Add(1)
		return nil, errors.Join(errors.New("too many sessions are open"), relay.Close())
	}
	err = f.bridge.Open(ctx, bridge.Session{
		ID:           opened.id,
		Identity:     state.IdentityHint,
		RelayAddress: relay.LocalAddr().String(),
		PeerAddress:  secure.RemoteAddr().String(),
		Close:        opened.end,
	})
	if err != nil {
		f.Counters.SessionsRefused.Add(1)
		opened.end()
		return nil, err
	}
	return opened, nil
}

// add keeps a session and ends the identity's oldest ones beyond the limit; false where no more sessions are taken.
func (f *Front) add(identity string, opened *session) bool {
	f.mutex.Lock()
	defer f.mutex.Unlock()
	if f.Counters.Sessions.Load() >= int64(f.limits.Sessions) {
		return false
	}
	f.Counters.Sessions.Add(1)
	mine := append(f.sessions[identity], opened)
	f.sessions[identity] = mine
	if len(mine) > f.limits.SessionsPerIdentity {
		go mine[0].end()
	}
	return true
}

// end closes a session once; called through session.end.
func (f *Front) end(identity string, ended *session) {
	f.mutex.Lock()
	left := f.sessions[identity][:0:0]
	for _, other := range f.sessions[identity] {
		if other != ended {
			left = append(left, other)
		}
	}
	if len(left) == 0 {
		delete(f.sessions, identity)
	} else {
		f.sessions[identity] = left
	}
	f.Counters.Sessions.Add(-1)
	f.mutex.Unlock()
	f.bridge.Closed(ended.id)
	_ = ended.relay.Close()
	_ = ended.secure.Close()
}

func (f *Front) endAll() {
	f.mutex.Lock()
	var open []*session
	for _, mine := range f.sessions {
		open = append(open, mine...)
	}
	f.mutex.Unlock()
	for _, one := range open {
		one.end()
	}
}

// inward relays the device's datagrams to the bridge.
func (f *Front) inward(opened *session) {
	buffer := make([]byte, maxDatagram)
	limiter := rate.NewLimiter(f.limits.DatagramsPerSecond, f.limits.DatagramBurst)
	for {
		if err := opened.secure.SetReadDeadline(time.Now().Add(f.limits.Idle)); err != nil {
			return
		}
		count, err := opened.secure.Read(buffer)
		if err != nil {
			return
		}
		if !limiter.Allow() {
			f.Counters.DatagramsLimited.Add(1)
			continue
		}
		f.Counters.DatagramsIn.Add(1)
		// A bridge that restarts refuses datagrams for a moment (ICMP): CoAP repeats them.
		_, _ = opened.relay.Write(buffer[:count])
	}
}

// outward relays the bridge's datagrams to the device.
func (f *Front) outward(opened *session) {
	buffer := make([]byte, maxDatagram)
	for {
		count, err := opened.relay.Read(buffer)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // ICMP "port unreachable" while the bridge restarts
		}
		f.Counters.DatagramsOut.Add(1)
		if _, err := opened.secure.Write(buffer[:count]); err != nil {
			return
		}
	}
}
