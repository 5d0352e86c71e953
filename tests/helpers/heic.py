"""HEIC files, which nothing here writes: small ones, made once by libheif's encoder of pictures of `picture()`.

plain; with EXIF that says it is turned by a quarter, and an artist; of 10 bits; two pictures, of which the second is
the primary one and the first is upside down; gray.
"""

from __future__ import annotations

import base64

import numpy as np


def picture() -> np.ndarray:
    """uint8 [32, 48, 3]: what they show."""
    y, x = np.mgrid[:32, :48]
    return np.stack([x * 255 // 48, y * 255 // 32, (x + y) * 255 // 80], axis=-1).astype(np.uint8)


_STORED = {
    "plain": (
        "0000SW^{RQXk}?*00000ZE0pPXk}?*ZE0a<0004fZDn*}000000000XXk=`10000000000aA{+700000000000000000000B57=I"
        "V*mgE07O6l0RRC200001p#T8@00000003$L001LtX>Mi!000000RR916=`l}WdZ;I000310BCk&F#rGn01j|zbZr0t000010002}"
        "X>f9I0002pX>en20001XXm(>m0RwOV0058x000009`FGC{rLC*01pFT0096PKmiN^|NjGU00093kN^M!000939=ZZRVE_RDDnbDP"
        "18@KU0|1Z!00RI30{|YNAb|yz>g1-mxCm%4AOHXZ10VnZ0{|gn00967L;=Bbz=;3=025<xY;ta6Y<K_x01W^JfB*mh6lrsCWdHyG"
        "00000KmY&$KmY&$C}V74Z~y=RFaQ7m0RR91AOHXW0ssI1@Bjb+0{{R2-~a#s0ssI25O8UDX#fBK00RgJ2mk;87-?{AVE_OC00000"
        "0RRC7fdT^sga7~la&2T`bN~PVW+(x#6M*$I)+}%g&*Zl<=rVb>2Znl-PQ+_Nb7qU6&D5kzsZ2pAX7400Q&r}QdSBcg1LWd-x@4{>"
        "&51Cz#WI@ARpg8UY?0tjlwAUn*iH^z^%51k{@X@2vR=Tm-+Chi6YYQ"
    ),
    "turned": (
        "0000SW^{RQXk}?*00000ZE0pPXk}?*ZE0a<0005VZDn*}000000000XXk=`10000000000aA{+700000000000000000000G-+&a"
        "V*mgE07O6l0ssL300001>;M4(00000003$L0ssI200LG30RR9100000IsgCwIB98aW&i*H00062000$fZf0cy000000RRAKc4ILB"
        "0000LX>Mj^0ssI300IC2MR;ju000004sdC7Z2$lO00031009SSaB^?}008D`aAR)(004Gqc4I>U18@KU0FVFx0000U@BsY%`1k+-"
        "4+CHT0RR|40Sp2E{{wIU00RJ!0009300RIXx&lC90096hLID8-Z~y=U0FVFx0{{R603M(qfd!W8<fgf}2xu@M00096AOHXZ03l)k"
        "0RRR>0l{;?i2wiq6Ju{|a&BX6cmM$a4FCp!0000KX>)L8000000000$0000$0000eV{Bn?0000m000010000W00001|NsB+00002"
        "|NsBs000020000GaA|mH000000|*ER00009X>xCL0{{R38EJ5BVE_OC000000RRC8fdT^sgoXeB02*m>Wo7^X0000001jhhb7KGk"
        "0096200022ZDe6|0001HC;_h%fb}!hEN~3Z<hL^DGI_QKhI*7v#A`!yW{aTB)TB$POhG7S?<6o&RpyF%U)&x8<l=m~WUeU9i7>Ur"
        "GMda)<ctDrk>F00T>_HWP7Yo55*54t+eS9BUcj^8dLslA?SKFP00u>PX=VTbO-%qQ0000800IFL00RI3009670003y00IC200{s9"
        "044wc002s1Ze<`uZ)E@g"
    ),
    "ten": (
        "0000SW^{RQXk}@500000ZE0pPXk}@5ZE0a<0004eZDn*}000000000XXk=`10000000000aA{+700000000000000000000B57=I"
        "V*mgE07O6l0RRC200001pa1~?00000003D4001LtX>Mi!000000RR916=`l}WdZ;I000310BCk&F#rGn01j|zbZr0t000010002|"
        "X>f9I0002oX>en20001WXm(>m0R#vD005o1000009`FGC{rdU<01pFT0096OKmiN^|NjIC00093owxu10{{RXx&lC90096hLID8;"
        "2mk;B0G+r100RI39-ttB1lew`N^6^dhJykC00RIr000930uW*V0RRR>0l{;?i2wiq6Ju{|a&BX6cmM$a4FCp!0000KX>)L800000"
        "0000$0000$0000eV{Bn?0000m000010000W00001|NsB+00002|NsBs000020000GaA|mH000000}2WX0000OX>e^}0000000001"
        "009Mo0s{qv0001CZDe6|00010C;_h%fb}!hEN~3Z<hL^DGI_P*hI*7d#A`!yW{aTB)TB$POhG7S?<6o&RpyF#`v<-j--Zba8`cQ`"
        "O|NRr8TNK7rz>XKZ+nT3z|>y*)=PhH-~"
    ),
    "several": (
        "0000SW^{RQXk}?*00000ZE0pPXk}?*ZE0a<00053ZDn*}000000000XXk=`10000000000aA{+700000000000000000000G-+&a"
        "V*mgE07O6l0ssL300001&;S7d00000003qH0ssI200K4u0RR9100000Y5)KLIB98aW&i*H00062000$fZf0cy000000RRAKc4ILB"
        "0000LX>Mj^0ssI200IC2Xm(>U000004sdC7Z2$lO00062009MQaB^?}007--aAR)(004Gqc4I>U18@KU0FVFx0000U@BsY%`1k+-"
        "4+CHT0RR|40Sp2E{{wIU00RJ!0009300RIXx&lC90096hLID8-Z~y=U0FVFx0{{R603M(qfd!W8<fgf}2xu@M00096AOHXZ03l)k"
        "0RRR>0l{;?i2wiq6Ju{|a&BX6cmM$a4FCp!0000KX>)L8000000000$0000$0000eV{Bn?0000m000010000W00001|NsB+00002"
        "|NsBs000020000GaA|mH000000|*ER0000WX>e^}0000000002009Mo0s{qv00ISp0s{qv0002kZDe6|0001DC;_h%fb}!gsz9hd"
        "`wlnIWX5a{4D~3Th}TZ$%@;zQsZ!@sn1Wxw!cSw4OYCY?=cqcSF}C4bDD*%}_dD=X)2K;<BM9?(G)0{L?tL`wtM|INQBT1ALNhW$"
        "EdK3!PhbE50A?rwuM>dvGuA9{4A11ZGUzgSwg-lKlupEJLvv<}pv}~zOQ}pjC}!^@FjH0Lih5t%9s}g!e7a<=D9wp5wZ$@;%vI!!"
        "0&J1sPLy2&lGsiTUG)+byZ+loHnLv8v)_6n1QYFm"
    ),
    "gray": (
        "0000SW^{RQXk}@500000ZE0pPXk}@5ZE0a<0004XZDn*}000000000XXk=`10000000000aA{+700000000000000000000B57=I"
        "V*mgE07O6l0RRC200001nE(L*00000001oj001LtX>Mi!000000RR916=`l}WdZ;I000310BCk&F#rGn01j|zbZr0t000010002>"
        "X>f9I0002hX>en20001RXm(>m0R#vD005u(000009`FGC{P_3)01pFT0096OKmiN^|NjIC00093pZEX(0{{RXx&lC90096cLID8;"
        "2mk;B0H62(00RI39>9VG7F(;5n&!ZO000bt00093gkk^z00u+>!E?Zg0000JV{dG7ZewhC0096E00w{n000zeb8uw<00000002M$"
        "002M$001asY+-N!001xm00031001BW00061|Nrm+00092|Nr0s00062000hfX?SS>000012mk;87-?{AVE_OC000000RRC7fdT^s"
        "ga7~lHEm>JbN~PVDJTK1C+Ht?m4*Ex*w_`<o>!7dO2|%qPIexhWvNF?d6?lCK0rVDW55"
    ),
}
FILES = {name: base64.b85decode(text) for name, text in _STORED.items()}
