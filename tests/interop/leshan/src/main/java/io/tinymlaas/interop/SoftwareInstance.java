package io.tinymlaas.interop;

import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.util.HexFormat;
import java.util.Map;

import org.eclipse.leshan.client.servers.LwM2mServer;
import org.eclipse.leshan.core.node.LwM2mResource;
import org.eclipse.leshan.core.request.argument.Arguments;
import org.eclipse.leshan.core.response.ExecuteResponse;
import org.eclipse.leshan.core.response.WriteResponse;

/** Object 9 as its standard draws it: package by push or pull, install, activate, deactivate, uninstall. */
final class SoftwareInstance extends FixedInstance {
    private static final int PACKAGE = 2, URI = 3, INSTALL = 4, UNINSTALL = 6, STATE = 7, RESULT = 9, ACTIVATE = 10,
            DEACTIVATE = 11, ACTIVE = 12;
    private static final long INITIAL = 0, STARTED = 1, DELIVERED = 3, INSTALLED = 4;
    private final Download download;

    SoftwareInstance(Download download) {
        super(Map.of(0, "", 1, "", STATE, INITIAL, RESULT, 0L, ACTIVE, false));
        this.download = download;
    }

    @Override
    public WriteResponse write(LwM2mServer server, boolean replace, int resource, LwM2mResource value) {
        if ((long) values.get(STATE) != INITIAL) {
            return WriteResponse.badRequest("slot is in use");
        }
        if (resource == PACKAGE) {
            delivered((byte[]) value.getValue(), "push");
            return WriteResponse.success();
        }
        if (resource == URI) {
            set(STATE, STARTED);
            set(RESULT, 1L);
            download.fetch((String) value.getValue(), bytes -> delivered(bytes, "pull"), this::failed);
            return WriteResponse.success();
        }
        return super.write(server, replace, resource, value);
    }

    @Override
    public ExecuteResponse execute(LwM2mServer server, int resource, Arguments arguments) {
        long state = (long) values.get(STATE);
        boolean active = (boolean) values.get(ACTIVE);
        switch (resource) {
        case INSTALL:
            return change(state == DELIVERED, INSTALLED, 2L, false);
        case UNINSTALL:
            return change(!active, INITIAL, 0L, false);
        case ACTIVATE:
            return change(state == INSTALLED, state, 2L, true);
        case DEACTIVATE:
            return change(active, state, 2L, false);
        default:
            return super.execute(server, resource, arguments);
        }
    }

    private ExecuteResponse change(boolean allowed, long state, long result, boolean active) {
        if (!allowed) {
            return ExecuteResponse.methodNotAllowed();
        }
        set(STATE, state);
        set(RESULT, result);
        set(ACTIVE, active);
        Wire.tell("software", "slot", getId(), "state", state, "active", active);
        return ExecuteResponse.success();
    }

    private void delivered(byte[] bytes, String way) {
        Wire.tell("package", "slot", getId(), "way", way, "bytes", bytes.length, "sha256", sha256(bytes));
        set(0, "module");
        set(1, "1.0");
        set(RESULT, 3L);
        set(STATE, DELIVERED);
    }

    private void failed(String why) {
        Wire.tell("download failed", "slot", getId(), "why", why);
        set(RESULT, why.equals("no answer") ? 52L : 56L);
        set(STATE, INITIAL);
    }

    static String sha256(byte[] bytes) {
        try {
            return HexFormat.of().formatHex(MessageDigest.getInstance("SHA-256").digest(bytes));
        } catch (NoSuchAlgorithmException error) {
            throw new IllegalStateException(error);
        }
    }
}
